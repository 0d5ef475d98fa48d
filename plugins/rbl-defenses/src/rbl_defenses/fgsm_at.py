"""FGSM adversarial training (Goodfellow et al., 2015, arXiv:1412.6572): a negative control."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from rbl_defenses.single_step import SingleStep
from robustbench_lite.training import Context


@dataclass(frozen=True, kw_only=True)
class FGSMTraining(SingleStep):
    """Minimise the cross-entropy at the points that one step of size eps from x itself leads to.

    It is known to overfit catastrophically to its one step (Wong et al., 2020): then FGSM finds nothing, and PGD everything.
    Only adversarial examples are trained on, without the clean ones that Goodfellow et al. mix in.
    """

    def point(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        return self.step(model, x, y, context, "zero")

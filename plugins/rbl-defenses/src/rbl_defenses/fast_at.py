"""Fast adversarial training, RS-FGSM (Wong et al., 2020, arXiv:2001.03994)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.single_step import SingleStep
from robustbench_lite.training import Context, EarlyStop


@dataclass(frozen=True, kw_only=True)
class FastTraining(SingleStep):
    """Minimise the cross-entropy at the points that one step from a uniform start in the ball leads to.

    early_stop: by default, training ends where accuracy under PGD on training images collapses, and the epoch before is kept.
    """

    alpha: Annotated[float, Field(gt=0)] = 1.25
    early_stop: EarlyStop = "collapse"

    def point(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        return self.step(model, x, y, context, "uniform")

"""The fast gradient method (Goodfellow et al., 2015, arXiv:1412.6572), in linf, l2 and l1."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rbl_attacks.geometry import linear_optimum
from rbl_attacks.objectives import objective
from robustbench_lite import Randomness, Target, Threat


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """One step: where the cross-entropy, linearised at the clean image, is highest inside ball and box.

    Under linf this is x + eps sign(g), clipped. Under l2 and l1 it solves the same linear problem including the box, which
    equals x + eps g / |g|_2 (l2) or eps on the largest derivative (l1) wherever the box is out of reach.
    """

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example."""
        return 2

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        _, _, gradient = target.loss_and_grad(x, objective("ce", target), y)
        return linear_optimum(x, gradient, threat)

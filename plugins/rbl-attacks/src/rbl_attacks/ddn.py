"""Decoupled direction and norm (Rony et al., 2019, arXiv:1811.09600): l2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.geometry import TINY, direction, length, per_image, random_where_zero
from rbl_attacks.margins import lead
from rbl_attacks.objectives import objective
from robustbench_lite import Randomness, Target, Threat


@dataclass(frozen=True, kw_only=True)
class DDN:
    """Steps along the gradient of the cross-entropy, each brought onto a sphere around the clean image; the sphere shrinks
    where the point is adversarial and grows where it is not.

    steps: gradient steps. step: Euclidean length of the first one; it falls to a hundredth along a half cosine. radius: of
    the first sphere. gamma: share by which the radius changes at every step. Nothing is rounded to grey levels.

    Differs from the reference: a last forward pass evaluates the last point, which is otherwise never looked at; a gradient
    is used however small it is, where the reference takes a random direction below 1e-12.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    step: Annotated[float, Field(gt=0)] = 1.0
    radius: Annotated[float, Field(gt=0)] = 1.0
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.05

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example."""
        return 2 * self.steps + 1

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        classes, noise = target.num_classes, rng.child("plateau")
        loss = objective("ce", target)
        current, farthest = x, length(torch.maximum(x, 1 - x), "l2").flatten()
        radius = torch.full_like(farthest, self.radius)
        for number in range(self.steps):
            logits, _, gradient = target.loss_and_grad(current, loss, y)
            way = random_where_zero(direction(gradient), noise, number)
            delta = current - x + annealed(self.step, 0.01 * self.step, number / self.steps) * way
            beaten = lead(logits, y, classes) > 0
            radius = torch.minimum(radius * torch.where(beaten, 1 - self.gamma, 1 + self.gamma), farthest)
            current = (x + delta * (per_image(radius, x) / length(delta, "l2").clamp_min(TINY))).clamp(0, 1)
        target.logits(current)
        return target.best(x)


def annealed(first: float, last: float, share: float) -> float:
    """The value at ``share`` in [0, 1] of the way from ``first`` to ``last`` along a half cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2

"""Noise: attacks that ask the defense nothing. Whatever they achieve needs no adversary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from rbl_attacks.geometry import gaussian, in_ball
from robustbench_lite import Randomness, Target, Threat


@dataclass(frozen=True, kw_only=True)
class UniformNoise:
    """One point, uniform in the ball of the threat model, then clipped to the box."""

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example."""
        return 0

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        return threat.project(x, x + in_ball(x, threat, rng))


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """One draw from N(0, sigma^2 I), projected into the ball and the box.

    scale: sigma in units of the one at which the expected length is the radius: eps for linf (per value), eps / sqrt(d) for
    l2, eps / (d sqrt(2 / pi)) for l1, with d values in an image.
    """

    scale: Annotated[float, Field(gt=0)] = 1.0

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example."""
        return 0

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        d = math.prod(x.shape[1:])
        unit = {"linf": 1.0, "l2": math.sqrt(d), "l1": d * math.sqrt(2 / math.pi)}[threat.norm]
        return threat.project(x, x + gaussian(x, rng) * (self.scale * threat.eps / unit))

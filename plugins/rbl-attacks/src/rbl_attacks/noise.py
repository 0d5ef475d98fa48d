"""Noise: one draw that asks the defense nothing, or the worst of several. Whatever it achieves needs no adversary."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.decision import affords
from rbl_attacks.geometry import gaussian, in_ball, on_sphere
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
        return threat.project(x, x + gaussian(x, rng) * sigma(x, threat, self.scale))


@dataclass(frozen=True, kw_only=True)
class RepeatedNoise:
    """Up to ``draws`` draws of noise, and of each example the first that is misclassified: worst of n.

    kind: ``uniform`` in the ball, ``gaussian`` as in GaussianNoise with ``scale``, or ``sphere``: uniform in the ball, then
    moved outwards to its surface. draws: queries per example. The clean image where none is misclassified.
    """

    kind: Literal["uniform", "gaussian", "sphere"] = "uniform"
    draws: Annotated[int, Field(ge=1)] = 10
    scale: Annotated[float, Field(gt=0)] = 1.0

    def passes(self, num_classes: int) -> int:
        """Forward passes per example that is never beaten."""
        return self.draws

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        def noisy(clean: Tensor, stream: Randomness) -> Tensor:
            if self.kind == "gaussian":
                delta = gaussian(clean, stream) * sigma(clean, threat, self.scale)
            else:
                delta = in_ball(clean, threat, stream)
            return clean + (on_sphere(delta, threat.norm, threat.eps) if self.kind == "sphere" else delta)

        return worst_of(noisy, self.draws, target, x, threat, rng)


@dataclass(frozen=True, kw_only=True)
class SaltAndPepper:
    """Up to ``draws`` choices of eps pixels that become black or white, and the first that is misclassified.

    draws: queries per example. The clean image where none is misclassified.
    """

    draws: Annotated[int, Field(ge=1)] = 10

    def passes(self, num_classes: int) -> int:
        """Forward passes per example that is never beaten."""
        return self.draws

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        def specked(clean: Tensor, stream: Randomness) -> Tensor:
            size = clean.shape[2:]
            order = stream.permutation(None, math.prod(size))
            grains = torch.zeros_like(order).scatter(1, order[:, : int(threat.eps)], 1).view(-1, 1, *size) > 0
            return torch.where(grains, (stream.child("colour").sign(None, (1, *size)) + 1) / 2, clean)

        return worst_of(specked, self.draws, target, x, threat, rng)


def worst_of(
    noisy: Callable[[Tensor, Randomness], Tensor], draws: int, target: Target, x: Tensor, threat: Threat, rng: Randomness
) -> Tensor:
    """Show the target ``noisy(x, stream)`` up to so many times, of each example until it is beaten, and return the best."""
    rows = torch.arange(len(x), device=x.device)
    for number in range(draws):
        rows = rows[~target.broken[rows] & affords(target, rows)]
        if not len(rows):
            break
        clean = x[rows]
        target.labels(threat.project(clean, noisy(clean, rng.child("draw", number).select(rows))), rows)
    return target.best(x)


def sigma(x: Tensor, threat: Threat, scale: float) -> float:
    """The standard deviation of gaussian noise ``scale`` times as long as the radius; see GaussianNoise."""
    d = math.prod(x.shape[1:])
    return scale * threat.eps / {"linf": 1.0, "l2": math.sqrt(d), "l1": d * math.sqrt(2 / math.pi)}[threat.norm]

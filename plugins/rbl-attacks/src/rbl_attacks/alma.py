"""The augmented Lagrangian method (Rony et al., 2021, arXiv:2011.11857) in l2 and l1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.geometry import TINY, length, on_sphere, per_image, random_where_zero
from rbl_attacks.objectives import objective
from robustbench_lite import Randomness, Target, Threat

FIRST_MOVE = {"l2": 0.1, "l1": 0.5}


@dataclass(frozen=True, kw_only=True)
class ALMA:
    """Descent on the distance under the constraint that the point is adversarial, whose weight is adapted to each example.

    The constraint is y < 0 for the difference of logits ratio y, positive where the label leads; with two classes, for the
    difference of logits over what it is at the clean image.

    steps: gradient steps. first_move: length of the first one in the threat's norm, which sets each example's step size; None
    for 0.1 (l2) or 0.5 (l1). decay: what is left of the step size at the end; it falls from the first found point on.
    multiplier, penalty: where mu and rho start. patience: steps between checks of the constraint; where nothing was found and
    y has not fallen below ``improvement`` of its last value, rho is multiplied by ``growth``. smoothing: what mu, and the
    means of the gradient and of its square, keep of their past; 0.5 suits runs of 100 steps better.

    Differs from the reference: y is compared with 0, not with 1e-4 logits, so that the scale of the logits does not matter;
    the search for the first step size ends also where the box is nearer than ``first_move``; a last forward pass evaluates
    the last point, which is otherwise never looked at.
    """

    steps: Annotated[int, Field(ge=1)] = 1000
    first_move: Annotated[float, Field(gt=0)] | None = None
    decay: Annotated[float, Field(gt=0, le=1)] = 0.01
    multiplier: Annotated[float, Field(gt=0)] = 1.0
    penalty: Annotated[float, Field(gt=0)] = 1.0
    patience: Annotated[int, Field(ge=1)] = 10
    improvement: Annotated[float, Field(gt=0, le=1)] = 0.95
    growth: Annotated[float, Field(ge=1)] = 1.2
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.9

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example."""
        return 2 * self.steps + 1

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        norm, keep, never = threat.norm, self.smoothing, self.steps + 1
        opposite = objective("margin" if target.num_classes == 2 else "dlr", target)
        current, square, push = x, torch.ones_like(x), torch.zeros_like(x)
        mu, rho = x.new_full((len(x),), self.multiplier), x.new_full((len(x),), self.penalty)
        rate, last, unit, found_at = torch.ones_like(mu), torch.ones_like(mu), torch.ones_like(mu), torch.full_like(y, never)
        for number in range(self.steps):
            _, value, uphill = target.loss_and_grad(current, opposite, y)
            if number == 0 and target.num_classes == 2:
                unit = value.abs().clamp_min(TINY)
            ratio, slope = (-value / unit).nan_to_num(nan=1.0), -uphill / per_image(unit, x)
            if number and (number + 1) % self.patience == 0:
                stuck = (found_at == never) & (ratio >= self.improvement * last)
                rho = torch.where(stuck, self.growth * rho, rho).clamp_max(1e8)
            if number == 0 or (number + 1) % self.patience == 0:
                last = ratio
            if number:
                mu = mu.lerp(penalty_slope(ratio, rho, mu), 1 - keep).clamp(1e-6, 1e12)
            found_at = torch.where((found_at == never) & (ratio < 0), number, found_at)
            gradient = (per_image(penalty_slope(ratio, rho, mu), x) * slope).nan_to_num(0.0, 0.0, 0.0)
            if number == 0:
                flat = length(gradient, "l2") <= 1e-6
                gradient = random_where_zero(torch.where(flat, 0, gradient), rng.child("plateau"), 0)
                rate = first_rate(x, gradient, norm, self.first_move or FIRST_MOVE[norm])
            else:
                delta = current - x
                gradient = gradient + (delta.sign() if norm == "l1" else on_sphere(delta, "l2", 1.0))
            square.mul_(keep).addcmul_(gradient, gradient, value=1 - keep)
            push.mul_(keep).addcdiv_(gradient, square.sqrt().add_(1e-8))
            share = (number - found_at).clamp_min(0) / (self.steps - found_at)
            current = (current - per_image(rate * self.decay**share, x) * push).clamp(0, 1)
        target.logits(current)
        return target.best(x)


def penalty_slope(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """(n,) derivative in y of the paper's penalty P2: mu y + mu rho y^2 + rho^2 y^3 / 6 from 0 on, mu y / (1 - rho y) below."""
    above, below = y.clamp_min(0), y.clamp_max(0)
    return torch.where(y >= 0, mu + 2 * mu * rho * above + (rho * above).square() / 2, mu / (1 - rho * below).square())


def first_rate(x: Tensor, gradient: Tensor, norm: str, wanted: float) -> Tensor:
    """(N,) step sizes at which a step against the gradient, clipped to the box, has length ``wanted`` in the norm.

    The largest tried where the box is too near for any.
    """

    def too_short(rate: Tensor) -> Tensor:
        moved = (x - per_image(rate, x) * gradient).clamp(0, 1)
        return length(moved - x, norm).flatten() < wanted

    high = (wanted / length(gradient, norm).clamp_min(TINY)).flatten()  # long enough if nothing is clipped
    for _ in range(20):
        high = torch.where(too_short(high), 2 * high, high)
    low = torch.zeros_like(high)
    for _ in range(20):
        middle = (low + high) / 2
        short = too_short(middle)
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return high

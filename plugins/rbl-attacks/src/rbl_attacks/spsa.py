"""Gradients from differences of scores along random directions, and SPSA (Uesato et al., 2018, arXiv:1802.05666)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.adam import Adam
from rbl_attacks.best import Best
from rbl_attacks.decision import affords
from rbl_attacks.geometry import portions
from rbl_attacks.margins import lead
from robustbench_lite import Randomness, Target, Threat


@dataclass(frozen=True, kw_only=True)
class SPSA:
    """Adam on the margin, with gradients estimated from the scores at pairs of points on either side of the current one.

    steps: of Adam. samples: queries for each gradient, half as many pairs. delta: how far each value of a pair's points is
    from the current one. lr: Adam's step size, per value. One more query a step looks at the new point.

    Every example has directions of its own. The points of a pair stay in the box, and under linf also in the ball, so that
    each of them may be the adversarial one: where a face is nearer than delta, the pair stands around the middle of what is
    left. Under l2 each step is followed by a projection.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    samples: Annotated[int, Field(ge=2, multiple_of=2)] = 128
    delta: Annotated[float, Field(gt=0)] = 0.01
    lr: Annotated[float, Field(gt=0)] = 0.01

    def passes(self, num_classes: int) -> int:
        """Forward passes per example that is never beaten."""
        return self.steps * (self.samples + 1)

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        margin, pairs = partial(lead, classes=target.num_classes), affordable_pairs(self.samples, target.budget)
        current, best, adam = x.clone(), Best(x), Adam(x)
        rows = torch.arange(len(x), device=x.device)
        for number in range(1, self.steps + 1):
            left = ~target.broken[rows] & affords(target, rows, 2 * pairs + 1)
            rows = rows[left]
            adam.keep(left)
            if not len(rows):
                break
            near = span(x[rows], current[rows], threat, self.delta)
            signs = partial(_signs, rng.child("step", number), rows, x.shape[1:])
            gradient, _ = estimated_gradient(target, margin, near, y[rows], rows, pairs, signs)
            left = ~target.broken[rows]
            rows, gradient = rows[left], gradient[left]
            adam.keep(left)
            current[rows] = point = threat.project(x[rows], current[rows] - adam.move(-gradient, self.lr))
            best.keep(rows, point, margin(target.logits(point, rows), y[rows]))
        return target.best(best.points)


def affordable_pairs(samples: int, budget: int | None) -> int:
    """Pairs of a gradient with so many samples; fewer where the protocol's budget would not last for a single step."""
    return samples // 2 if budget is None else max(1, min(samples, budget - 1) // 2)


def span(x: Tensor, current: Tensor, threat: Threat, reach: float) -> tuple[Tensor, Tensor]:
    """The least and the largest values (n, ...) within ``reach`` of the current points, in the box, and in the linf ball."""
    low, high = (current - reach).clamp_(min=0), (current + reach).clamp_(max=1)
    if threat.norm == "linf":
        low, high = torch.maximum(low, x - threat.eps), torch.minimum(high, x + threat.eps)
    return low, torch.maximum(low, high)


def estimated_gradient(
    target: Target,
    loss: Callable[[Tensor, Tensor], Tensor],
    near: tuple[Tensor, Tensor],
    y: Tensor,
    rows: Tensor,
    pairs: int,
    directions: Callable[[Tensor, Tensor], Tensor],
    mean_square: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """An estimate of the gradient of ``loss(logits, y)`` in the middle of ``near``, and the mean of the losses seen (n,).

    near: the least and largest values (n, ...) of the points asked. directions(owner, number): (m, ...) random directions:
    number ``number`` (m,) of example ``owner`` (m,), with independent values in [-1, 1] of mean 0 and ``mean_square``.

    With middle c, half width h and direction v, a pair contributes (loss(c + hv) - loss(c - hv)) v / 2h / mean_square. For a
    loss with the gradient w that is (v.hw) v / h / mean_square, whose mean is w. Losses and sums are in float64: rounding,
    which depends on who else is in the batch, would show in small differences. What is not finite counts as zero.
    """
    low, high = near
    middle, half = (low + high) / 2, (high - low) / 2
    n, size = len(middle), math.prod(middle.shape[1:])
    total, level = middle.new_zeros((n, size), dtype=torch.float64), middle.new_zeros(n, dtype=torch.float64)
    example = torch.arange(n, device=middle.device)
    for part, numbers in portions(n, size, pairs):
        chosen, count = example[part], len(numbers)
        owner = chosen.repeat_interleave(count)
        number = torch.arange(numbers.start, numbers.stop, device=owner.device).repeat(len(chosen))
        way = directions(owner, number)
        move = half[owner] * way
        points = torch.cat([middle[owner] + move, middle[owner] - move]).clamp_(0, 1)
        asked = owner.repeat(2)
        seen = loss(target.logits(points, rows[asked]).double(), y[asked]).view(2, len(chosen), count)
        level[part] += seen.sum(dim=(0, 2))
        total[part] += ((seen[0] - seen[1])[..., None] * way.view(len(chosen), count, size)).sum(1)
    gradient = (total.view_as(middle) / (2 * pairs * mean_square * half)).to(middle.dtype)
    return torch.where(gradient.isfinite(), gradient, 0), (level / (2 * pairs)).to(middle.dtype)


def _signs(rng: Randomness, rows: Tensor, shape: tuple[int, ...], owner: Tensor, number: Tensor) -> Tensor:
    """Rademacher directions."""
    return rng.sign(rows[owner], shape, draw=number)

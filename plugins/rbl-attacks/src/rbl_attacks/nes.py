"""The query-limited attack by natural evolution strategies (Ilyas et al., 2018, arXiv:1804.08598), in linf and l2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.best import Best
from rbl_attacks.decision import affords
from rbl_attacks.geometry import direction, per_image
from rbl_attacks.objectives import objective
from rbl_attacks.spsa import affordable_pairs, estimated_gradient, span
from robustbench_lite import Randomness, Target, Threat

REACH = 4.0  # gaussian directions are cut off at so many sigma


@dataclass(frozen=True, kw_only=True)
class NES:
    """Signed steps along a gradient estimated from the scores at gaussian points around the current one, in opposite pairs.

    queries: per example. samples: queries for each gradient; one more looks at the new point. sigma: of the gaussian, per
    value. lr: how far a step moves each value under linf; under l2 a step is as long, lr times the root of their number.
    Where the mean loss of the samples is lower than ``plateau`` estimates ago, lr is divided by ``drop``, down to ``min_lr``.
    momentum: what is kept of the gradients before. loss: ``ce`` or ``margin``.

    Untargeted, with full scores. The reference's rule for lr watches for a rising loss also where it is to rise; here lr falls
    where there is no progress. Points are kept in the box, and in the linf ball: near a face they scatter less.
    """

    queries: Annotated[int, Field(ge=3)] = 10_000
    samples: Annotated[int, Field(ge=2, multiple_of=2)] = 50
    sigma: Annotated[float, Field(gt=0)] = 0.001
    lr: Annotated[float, Field(gt=0)] = 0.01
    min_lr: Annotated[float, Field(gt=0)] = 5e-5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    plateau: Annotated[int, Field(ge=2)] = 5
    drop: Annotated[float, Field(gt=1)] = 2.0
    loss: Literal["ce", "margin"] = "ce"

    def passes(self, num_classes: int) -> int:
        """Forward passes per example that is never beaten."""
        step = 2 * affordable_pairs(self.samples, self.queries) + 1
        return self.queries // step * step

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        limit = self.queries if target.budget is None else min(self.queries, target.budget)
        pairs, loss_of = affordable_pairs(self.samples, limit), objective(self.loss, target)
        current, best = x.clone(), Best(x)
        velocity, rate = torch.zeros_like(x), x.new_full((len(x),), self.lr)
        # The losses of the last estimates, the latest last; NaN where lr was changed since, or none was made.
        recent = x.new_full((len(x), self.plateau), math.nan)
        rows = torch.arange(len(x), device=x.device)
        for number in range(self.queries // (2 * pairs + 1)):
            rows = rows[~target.broken[rows] & affords(target, rows, 2 * pairs + 1)]
            if not len(rows):
                break
            near = span(x[rows], current[rows], threat, REACH * self.sigma)
            gaussian = partial(_gaussian, rng.child("step", number), rows, x.shape[1:])
            gradient, level = estimated_gradient(target, loss_of, near, y[rows], rows, pairs, gaussian, REACH**-2)
            left = ~target.broken[rows]
            rows, gradient, level = rows[left], gradient[left], level[left]

            velocity[rows] = self.momentum * velocity[rows] + (1 - self.momentum) * gradient
            recent[rows] = torch.cat([recent[rows, 1:], level[:, None]], 1)
            stuck = rows[recent[rows, -1] < recent[rows, 0]]
            lower = (rate[stuck] / self.drop).clamp_min(min(self.min_lr, self.lr))
            rate[stuck], recent[stuck] = lower, math.nan

            step = per_image(rate[rows], x) * self._direction(velocity[rows], threat.norm)
            current[rows] = point = threat.project(x[rows], current[rows] + step)
            best.keep(rows, point, loss_of(target.logits(point, rows), y[rows]))
        return target.best(best.points)

    def _direction(self, velocity: Tensor, norm: str) -> Tensor:
        if norm == "linf":
            return velocity.sign()
        return math.sqrt(math.prod(velocity.shape[1:])) * direction(velocity, "l2")


def _gaussian(rng: Randomness, rows: Tensor, shape: tuple[int, ...], owner: Tensor, number: Tensor) -> Tensor:
    """Gaussian directions, as shares of their reach."""
    return rng.normal(rows[owner], shape, draw=number).clamp_(-REACH, REACH) / REACH

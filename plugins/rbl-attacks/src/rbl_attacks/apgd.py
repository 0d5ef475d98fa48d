"""Auto-PGD (Croce & Hein, 2020, arXiv:2003.01690), and its form for l1 (Croce & Hein, 2021, arXiv:2103.01208)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.geometry import gaussian, linear_optimum, on_sphere, per_image
from rbl_attacks.schedule import Euclidean, Schedule, Sparse
from robustbench_lite import Randomness, Target, Threat, losses


@dataclass(frozen=True, kw_only=True)
class AutoPGD:
    """What the members of the family share: everything but the loss.

    The step size is halved, and the search sent back to its best point, where a period of steps brought too few increases
    of the loss or no better point (linf and l2, with momentum); under l1 the step size and the number of values that move
    follow the sparsity of the best point, and the search runs through larger radii first.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.75
    larger_radii: bool = True
    finish: bool = True

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example that is never beaten."""
        return self.restarts * (2 * self.steps + 2)

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """(n,) what is climbed."""
        raise NotImplementedError

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        best, best_loss = x.clone(), x.new_full((len(x),), -math.inf)
        for restart in range(self.restarts):
            rows = (~target.broken).nonzero()[:, 0]
            if not len(rows):
                break
            chosen = rng.select(rows).child("restart", restart)
            point, loss = self._run(target.select(rows), x[rows], y[rows], threat, chosen)
            better = loss > best_loss[rows]
            best[rows[better]], best_loss[rows[better]] = point[better], loss[better]
        return target.best(best)

    def _run(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> tuple[Tensor, Tensor]:
        """One restart on n examples: the points with the highest loss (n, ...), and that loss (n,)."""
        if threat.norm != "l1":
            climb = _Climb(self, target, x, y, threat, start=_random_start(x, threat, rng))
            climb.run(self.steps)
        else:
            climb = self._run_l1(target, x, y, threat, rng)
        if self.finish and threat.norm != "linf":
            climb.try_linear_optimum()
        return climb.best, climb.best_loss

    def _run_l1(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> _Climb:
        """Radii of 3, 2 and 1 eps with 30, 30 and 40 % of the steps, each from the best point of the one before."""
        third = min(math.ceil(0.3 * self.steps), (self.steps - 1) // 2) if self.larger_radii else 0
        stages = [(3, third), (2, third), (1, self.steps - 2 * third)] if third else [(1, self.steps)]
        start = x + gaussian(x, rng)
        for factor, steps in stages:
            radius = threat.at(factor * threat.eps)
            climb = _Climb(self, target, x, y, radius, start=radius.project(x, start), given=self.larger_radii)
            climb.run(steps)
            start = climb.best
        return climb


@dataclass(frozen=True, kw_only=True)
class APGDCE(AutoPGD):
    """Auto-PGD on the cross-entropy.

    steps: gradient steps of each restart. restarts: runs from fresh random points, on what the earlier ones left. rho: the
    least share of increases among the steps of a period that keeps the step size (linf, l2). larger_radii: under l1, search
    at 3 eps and 2 eps first. finish: under l2 and l1, also try the linear optimum at the best gradient, for one forward pass.

    Returns the beaten point of each example, otherwise the one with the highest loss. Differs from the reference at the
    first checkpoint, where the first step's loss is compared with that of the start.
    """

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return losses.cross_entropy(logits, y)


def _random_start(x: Tensor, threat: Threat, rng: Randomness) -> Tensor:
    """On the sphere: uniform noise stretched to it (linf), or a random direction (l2)."""
    noise = rng.uniform(None, x.shape[1:], low=-1.0, high=1.0) if threat.norm == "linf" else gaussian(x, rng)
    return threat.project(x, x + on_sphere(noise, threat.norm, threat.eps))


class _Climb:
    """One run from one start point of each example. Beaten examples leave: ``left`` are the rows that remain."""

    def __init__(
        self, attack: AutoPGD, target: Target, x: Tensor, y: Tensor, threat: Threat, *, start: Tensor, given: bool = False
    ) -> None:
        self.attack, self.target, self.x, self.y, self.threat = attack, target, x, y, threat
        self.left = (~target.broken).nonzero()[:, 0]
        self.best = start.clone()
        self.best_loss = x.new_full((len(x),), -math.inf)
        self.best_gradient = torch.zeros_like(x)
        self.start, self.given = start, given

    def run(self, steps: int) -> None:
        """Take ``steps`` steps; the last point is evaluated without a gradient."""
        if not len(self.left):
            return
        current = previous = self.start[self.left]
        loss, gradient = self._climb_from(current)
        schedule = self._schedule(steps, loss, current)
        for number in range(steps):
            alive = ~self.target.broken[self.left]
            if not bool(alive.all()):
                self.left = self.left[alive]
                current, previous, gradient = current[alive], previous[alive], gradient[alive]
                schedule.keep(alive)
            if not len(self.left):
                return
            x = self.x[self.left]
            moved = self.threat.project(x, current + schedule.move(gradient))
            if schedule.momentum and number:
                push = schedule.momentum * (moved - current) + (1 - schedule.momentum) * (current - previous)
                moved = self.threat.project(x, current + push)
            current, previous = moved, current
            if number + 1 == steps:
                self._try(current)
                return
            loss, gradient = self._climb_from(current)
            back = schedule.observe(loss, self.best_loss[self.left], self.best[self.left] - x)
            if back is not None:
                mask = per_image(back, current)
                current = torch.where(mask, self.best[self.left], current)
                gradient = torch.where(mask, self.best_gradient[self.left], gradient)

    def try_linear_optimum(self) -> None:
        """One forward pass at the point that the best gradient points to."""
        self.left = (~self.target.broken).nonzero()[:, 0]
        if len(self.left):
            self._try(linear_optimum(self.x[self.left], self.best_gradient[self.left], self.threat))

    def _schedule(self, steps: int, loss: Tensor, start: Tensor) -> Schedule:
        if self.threat.norm != "l1":
            return Euclidean(steps, self.threat.eps, loss, norm=self.threat.norm, rho=self.attack.rho)
        return Sparse(steps, self.threat.eps, start - self.x[self.left], given=self.given)

    def _climb_from(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (n,) and gradient at points of the rows that are left."""
        _, loss, gradient = self.target.loss_and_grad(points, self.attack.loss, self.y[self.left], index=self.left)
        better = self._keep(points, loss)
        self.best_gradient[self.left[better]] = gradient[better]
        return loss, gradient

    def _try(self, points: Tensor) -> None:
        """Evaluate points from which nothing starts any more: no gradient is needed."""
        self._keep(points, self.attack.loss(self.target.logits(points, self.left), self.y[self.left]))

    def _keep(self, points: Tensor, loss: Tensor) -> Tensor:
        better = loss > self.best_loss[self.left]
        rows = self.left[better]
        self.best[rows], self.best_loss[rows] = points[better], loss[better]
        return better

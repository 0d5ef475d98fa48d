"""Adaptive Auto Attack, A3 (Liu et al., 2022, arXiv:2203.05154), with every decision made per example."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.ascent import Climb
from rbl_attacks.best import Best
from rbl_attacks.geometry import in_ball, select
from rbl_attacks.margins import lead, likely_classes
from rbl_attacks.schedule import steepest
from robustbench_lite import BudgetExceeded, Randomness, Target, Threat

# For each run: it takes the examples whose best lead is at most this share of the clean image's, and climbs for so many steps.
# Further runs are like the last. The first does not explore, the next RANDOM do so in random directions, others in chosen ones.
RUNS = (
    ((1.0, 8), (1.0, 15), (1.0, 15))
    + ((0.7, 32), (0.6, 37), (0.5, 37), (0.4, 42), (0.3, 47), (0.2, 52))
    + 5 * ((0.1, 57),)
    + 4 * ((0.065, 62),)
    + ((0.03, 67),)
)
RANDOM = 2


@dataclass(frozen=True, kw_only=True)
class A3:
    """Many short runs, each from where a few full-length steps in a chosen direction of logit space lead, and fewer and fewer
    of the examples in each.

    restarts: runs at most. explore: steps of length eps by which a run, but the first, goes to its start: they climb a
    weighted sum of the logits. steps: by which a run then climbs the lead of the best wrong class, at most: the first run has
    8, the next two 15, and the others 32 to 67; their length falls along a cosine from eps to eps / 1000 (eps / 10 in runs of
    up to 10 steps). An example leaves when it is beaten, or when it has made too little progress: after the third run, when
    its best lead is still more than 0.7 of the clean image's, ..., after the eighth 0.2, and after the ninth 0.1.

    The original takes from the whole batch which directions led to success, and which share of the examples (0.7, ..., 0.03)
    is nearest to it and goes on; here an example's own runs decide: the weights of its best run give the signs, the classes
    that have come nearest to the label are favoured in turn, and the same shares are of the clean image's lead. The
    original's last fifty runs are left out (``restarts=68`` has them), and so is its second schedule for where exploring
    alone beats 5 % of a batch.
    """

    restarts: Annotated[int, Field(ge=1)] = 18
    explore: Annotated[int, Field(ge=1)] = 7
    steps: Annotated[int, Field(ge=1)] = 67

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example that is never beaten and stays near the boundary, so that it never leaves."""
        climbs = sum(2 * self._run(run)[1] + 1 for run in range(self.restarts))
        return 1 + climbs + 2 * self.explore * (self.restarts - 1)

    def _run(self, run: int) -> tuple[float, int]:
        """The share of the clean image's lead that lets an example into this run, and how long the run climbs."""
        share, steps = RUNS[min(run, len(RUNS) - 1)]
        return share, min(steps, self.steps)

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        logits = target.logits(x)
        clean = lead(logits, y, target.num_classes)
        best = Best(x)
        best.keep(torch.arange(len(x), device=x.device), x, clean)
        nearest = _leads(logits, y)  # of each class, over all points seen
        weights = torch.zeros_like(nearest)  # of the best run

        def attempt(run: int, rows: Tensor, steps: int) -> None:
            chosen = rng.select(rows).child("run", run)
            chase = self._weights(run, y[rows], nearest[rows], weights[rows], target.num_classes, chosen)
            climb = _Climb(target.select(rows), x[rows], y[rows], threat, chosen, nearest[rows])
            if run:
                climb.explore(chase, self.explore)
            climb.ascend(steps)
            rows = rows[climb.rows]
            better = best.keep(rows, climb.best, climb.best_loss)
            weights[rows[better]] = chase[climb.rows[better]]
            nearest[rows] = climb.nearest

        for run in range(self.restarts):
            share, steps = self._run(run)
            rows = (~target.broken & (best.loss >= share * clean)).nonzero()[:, 0]
            if not len(rows):
                break
            for some in target.evenly_spent(rows):
                with suppress(BudgetExceeded):
                    attempt(run, some, steps)
        return target.best(best.points)

    def _weights(self, run: int, y: Tensor, nearest: Tensor, known: Tensor, classes: int, rng: Randomness) -> Tensor:
        """(n, C) of the logits that exploring climbs: uniform on [-1, 1], from the third such run on with two changes.

        The entry of one near class is far larger, and the label's is small, each mostly of the sign that it had in the
        example's best run. ``known``: the weights of that run.
        """
        weights = rng.uniform(None, (nearest.shape[1],), low=-1.0, high=1.0)
        if run <= RANDOM:
            return weights
        ranked = likely_classes(nearest, y, classes, _favoured(classes))
        favoured = ranked[:, (run - RANDOM - 1) % ranked.shape[1]][:, None]
        label = y[:, None]
        towards = torch.where(known.gather(1, ranked[:, :1]) < 0, -1.0, 1.0)
        of_label = torch.where(known.gather(1, label) > 0, 1.0, -1.0) * rng.child("label").uniform(
            None, (1,), low=-0.1, high=0.5
        )
        return weights.scatter(1, label, classes / 10 * of_label).scatter(1, favoured, classes / 10 * 0.8 * towards)


class _Climb(Climb):
    """One run of n examples, which climbs the lead of the best wrong class from a random start.

    current (k, ...): the points of the k that are left. nearest (k, C): the best lead of each class, which begins with those
    that are known.
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness, nearest: Tensor) -> None:
        self.current = threat.project(x, x + in_ball(x, threat, rng.child("start")))
        self.nearest = nearest
        super().__init__(target, x, threat, partial(lead, classes=target.num_classes), (y,), self.current)

    def explore(self, weights: Tensor, steps: int) -> None:
        """Climb the weighted logits, by steps as long as the radius."""
        for _ in range(steps):
            if not len(self.rows):
                return
            logits, _, gradient = self.target.loss_and_grad(self.current, _weighted, weights[self.rows], index=self.rows)
            self._remember(logits, self.loss(logits, *self.labels))
            self._move(gradient, self.threat.eps)

    def ascend(self, steps: int) -> None:
        """Climb the lead, by steps that fall from the radius to a small part of it, and evaluate the last point."""
        least = 0.1 if steps <= 10 else 1e-3
        for number in range(steps):
            if not len(self.rows):
                return
            logits, value, gradient = self.target.loss_and_grad(self.current, self.loss, *self.labels, index=self.rows)
            self._remember(logits, value)
            fall = (1 + math.cos(math.pi * number / (steps + 1))) / 2
            self._move(gradient, self.threat.eps * (least + (1 - least) * fall))
        if len(self.rows):
            logits = self.target.logits(self.current, self.rows)
            self._remember(logits, self.loss(logits, *self.labels))
            self.leave()

    def leave(self) -> Tensor | None:
        if (stays := super().leave()) is not None:
            self.current, self.nearest = select(stays, self.current, self.nearest)
        return stays

    def _remember(self, logits: Tensor, value: Tensor) -> None:
        self.keep(self.current, value)
        self.nearest = torch.maximum(self.nearest, _leads(logits, *self.labels))

    def _move(self, gradient: Tensor, size: float) -> None:
        """A step of length ``size`` in the threat's norm, for those that are not beaten yet."""
        if (stays := self.leave()) is not None:
            gradient = gradient.index_select(0, stays)
        self.current = self.project(self.current + size * steepest(gradient, self.current, self.threat.norm))


def _leads(logits: Tensor, y: Tensor) -> Tensor:
    """(n, C) by how much each class leads the label."""
    return logits - logits.gather(1, y[:, None])


def _weighted(logits: Tensor, weights: Tensor) -> Tensor:
    return (weights * logits).sum(1)


def _favoured(classes: int) -> int:
    """How many classes take their turn, as published: 9 of 10, 14 of 100, 20 of 1000."""
    return min(classes - 1, 9 if classes <= 10 else 14 if classes <= 100 else 20)

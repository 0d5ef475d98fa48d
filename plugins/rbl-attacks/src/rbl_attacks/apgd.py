"""Auto-PGD (Croce & Hein, 2020, arXiv:2003.01690), and its form for l1 (Croce & Hein, 2021, arXiv:2103.01208)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.ascent import Climb
from rbl_attacks.best import best_of, side_by_side
from rbl_attacks.geometry import gaussian, random_on_sphere
from rbl_attacks.margins import likely_classes
from rbl_attacks.objectives import objective, targeted
from rbl_attacks.schedule import Euclidean, Sparse
from robustbench_lite import Randomness, Target, Threat

# A loss, and for each run of a restart what it takes besides the logits, each (N, ...).
Goals = tuple[Callable[..., Tensor], Sequence[tuple[Tensor, ...]]]


@dataclass(frozen=True, kw_only=True)
class AutoPGD(ABC):
    """What the members of the family share: everything but the loss.

    steps: gradient steps of each restart. restarts: runs from fresh random points, on what the earlier ones left. rho: the
    least share of increases among the steps of a period that keeps the step size (linf, l2). larger_radii: under l1, search
    at 3 eps and 2 eps first. finish: under l2 and l1, also try the linear optimum at the best gradient, for one forward pass.

    The step size is halved, and the search sent back to its best point, where a period of steps brought too few increases
    of the loss or no better point (linf and l2, with momentum); under l1 the step size and the number of values that move
    follow the sparsity of the best point, and the search runs through larger radii first.

    A deterministic defense is not asked about a point from which the last step did not move.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.75
    larger_radii: bool = True
    finish: bool = True

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example that is never beaten, and whose points never come to rest: under l2; one less
        for each run under linf, two more under l1.
        """
        return self.restarts * (2 * self.steps + 2)

    @abstractmethod
    def goals(self, target: Target, x: Tensor, y: Tensor) -> Goals:
        """What is climbed in each restart."""

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        loss, goals = self.goals(target, x, y)

        def attempt(runs: tuple[int, range], left: Target, rows: Tensor) -> tuple[Tensor, Tensor]:
            restart, numbers = runs
            every = rows.repeat(len(numbers))
            wanted = zip(*(goals[number] for number in numbers), strict=True)
            labels = tuple(torch.cat([each[rows] for each in of_each_run]) for of_each_run in wanted)
            streams = [rng.select(rows).child("restart", restart * len(goals) + number) for number in numbers]
            noise = torch.cat([_noise(x[rows], threat, stream) for stream in streams])
            climb = self._climb(left if len(numbers) == 1 else target.select(every), x[every], threat, loss, labels, noise)
            if self.finish and threat.norm != "linf" and climb.best_gradient is not None:
                climb.try_linear_optimum(climb.best_gradient)
            return climb.result()

        sequence = [(restart, numbers) for restart in range(self.restarts) for numbers in side_by_side(len(goals), x)]
        return best_of(sequence, attempt, target, x)

    def _climb(
        self,
        target: Target,
        x: Tensor,
        threat: Threat,
        loss: Callable[..., Tensor],
        labels: tuple[Tensor, ...],
        noise: Tensor,
    ) -> Climb:
        """A run on n examples, from x + ``noise``. Under l1: radii of 3, 2 and 1 eps with 30, 30 and 40 % of the steps, each
        from the best point of the one before.
        """
        if threat.norm != "l1":
            climb = Climb(target, x, threat, loss, labels, threat.project(x, x + noise), directions=True)
            climb.run(self.steps, Euclidean(self.steps, threat.eps, norm=threat.norm, rho=self.rho))
            return climb
        third = min(math.ceil(0.3 * self.steps), (self.steps - 1) // 2) if self.larger_radii else 0
        stages = [(3, third), (2, third), (1, self.steps - 2 * third)] if third else [(1, self.steps)]
        start = x + noise
        for factor, steps in stages:
            ball = threat.at(factor * threat.eps)
            climb = Climb(target, x, ball, loss, labels, ball.project(x, start), directions=True)
            climb.run(steps, Sparse(steps, ball.eps, climb.best - climb.x, given=self.larger_radii))
            start = climb.result()[0]
        return climb


@dataclass(frozen=True, kw_only=True)
class APGDCE(AutoPGD):
    """Auto-PGD on the cross-entropy, with the parameters of ``AutoPGD``.

    Returns the beaten point of each example, otherwise the one with the highest loss. Differs from the reference at the
    first checkpoint, where the first step's loss is compared with that of the start.
    """

    def goals(self, target: Target, x: Tensor, y: Tensor) -> Goals:
        return objective("ce", target), [(y,)]


@dataclass(frozen=True, kw_only=True)
class APGDDLR(AutoPGD):
    """Auto-PGD on the difference of logits ratio, which knows no scale of the logits; parameters as of ``AutoPGD``.

    With two classes, where that ratio is not defined, on the margin.
    """

    def goals(self, target: Target, x: Tensor, y: Tensor) -> Goals:
        if target.num_classes < 3:
            target.note("the loss dlr needs at least 3 classes; the margin was climbed instead")
        return objective("dlr" if target.num_classes >= 3 else "margin", target), [(y,)]


@dataclass(frozen=True, kw_only=True)
class APGDT(AutoPGD):
    """Auto-PGD towards one class at a time, on the targeted difference of logits ratio; every misclassification counts.

    targets: how many classes, from the most likely wrong one of the clean image downwards; at most all wrong ones. A run of
    ``steps`` steps for the first, and for the others on what it left, side by side on small images; an example leaves when one
    of its runs beats it. ``restarts`` repeats all of that. The other parameters are those of
    ``AutoPGD``. With three classes, where that ratio is not defined, on the targeted cross-entropy; with two, on the margin.

    The ranks are those at the clean image, which the reference computes anew for each class: the same, for one pass instead.
    """

    targets: Annotated[int, Field(ge=1)] = 9

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example that is never beaten, and whose points never come to rest."""
        return super().passes(num_classes) * min(self.targets, num_classes - 1) + (num_classes > 2)

    def goals(self, target: Target, x: Tensor, y: Tensor) -> Goals:
        classes = target.num_classes
        if classes < 4:
            instead = "targeted cross-entropy" if classes == 3 else "margin"
            target.note(f"the targeted loss dlr needs at least 4 classes; the {instead} was climbed instead")
        if classes == 2:
            return objective("margin", target), [(y,)]
        ranked = likely_classes(target.logits(x), y, classes, self.targets)
        return targeted(target), [(y, aim) for aim in ranked.unbind(1)]


def _noise(x: Tensor, threat: Threat, rng: Randomness) -> Tensor:
    return gaussian(x, rng) if threat.norm == "l1" else random_on_sphere(x, threat.norm, threat.eps, rng)

"""The fast adaptive boundary attack (Croce & Hein, 2020, arXiv:1907.02044) in linf, l2 and l1, and its form with targets."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.best import side_by_side
from rbl_attacks.faces import bisect, nearest_face
from rbl_attacks.geometry import PORTION, length, per_image, random_on_sphere, select
from rbl_attacks.hyperplane import to_hyperplane
from rbl_attacks.margins import lead, likely_classes, unfinished, wrong_classes
from robustbench_lite import Randomness, Target, Threat

# How far restarts look where there is no radius: half of the size of the point found before, and of this at most.
REACH = {"linf": 0.3, "l2": 1.0, "l1": 5.0}


@dataclass(frozen=True, kw_only=True)
class FastAdaptiveBoundary(ABC):
    """What both forms share. Each step goes to the linearised boundary, by a mean of the ways from the current point and
    from the clean image, a little further than that; a point found on the other side is pulled back towards the clean image.

    With a radius (as a member of an ensemble) an example leaves at its first point inside; without one it never leaves.

    steps: of each restart. restarts: the first run starts at the clean image, others at random points around it, half as far
    as the best point known and at most half of 0.3 (linf), 1 (l2) or 5 (l1), or of the radius. alpha_max: largest weight of
    the way from the clean image. eta: how far to go, in units of the way to the boundary; on a linear model this alone leaves
    0.5 %. beta: what is kept of a found perturbation when the search goes on from it. refine: bisections between the clean
    image and the best point at the end; 0 as published.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    alpha_max: Annotated[float, Field(ge=0, le=1)] = 0.1
    eta: Annotated[float, Field(ge=1)] = 1.05
    beta: Annotated[float, Field(gt=0, le=1)] = 0.9
    refine: Annotated[int, Field(ge=0)] = 0

    @abstractmethod
    def aims(self, target: Target, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        """For each run of a restart (N, k) classes, of which each step takes the nearest."""

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        runs = list(self.aims(target, x, y))
        for restart in range(self.restarts):
            for numbers in side_by_side(len(runs), x):
                rows = unfinished(target, threat).nonzero()[:, 0]
                if not len(rows):
                    return target.best(x)
                every = rows.repeat(len(numbers))
                chosen, clean = target.select(every), x[every]
                aims = torch.cat([runs[number][rows] for number in numbers])
                streams = [rng.select(rows).child("restart", restart, number) for number in numbers]
                start = clean if restart == 0 else _around(chosen, clean, threat, streams)
                self._search(chosen, clean, y[every], aims, threat, start)
        if math.isinf(threat.eps):
            bisect(target, x, y, self.refine)
        return target.best(x)

    def _search(self, target: Target, x: Tensor, y: Tensor, aims: Tensor, threat: Threat, start: Tensor) -> None:
        """One run on n examples from ``start``; what it finds, the target keeps.

        Nearly every point that a step goes to is on the other side and is pulled back, so the gradient that comes with asking
        on which side it is would be thrown away: sides are asked for without it.
        """
        rows, current, finds = torch.arange(len(x), device=x.device), start, -1
        for _ in range(self.steps):
            if target.finds != finds:
                finds = target.finds
                stays = unfinished(target, threat)[rows].nonzero()[:, 0]
                if len(stays) < len(rows):
                    rows, current, x, y, aims = select(stays, rows, current, x, y, aims)
                if not len(rows):
                    return
            _, gap, normal = nearest_face(target, current, y, aims, threat.norm, rows)
            current = self._step(x, current, normal, gap, threat.norm)
            beaten = lead(target.logits(current, rows), y, target.num_classes) > 0
            current = x.lerp(current, per_image(torch.where(beaten, self.beta, 1.0), x))

    def _step(self, x: Tensor, current: Tensor, normal: Tensor, gap: Tensor, norm: str) -> Tensor:
        """Beyond the planes on which functions with value ``gap`` and gradient ``normal`` at the current points are zero."""
        size = max(1, PORTION // x[0].numel())  # how many examples at a time, so that large images fit in memory
        slices = [slice(first, first + size) for first in range(0, len(x), size)]
        return torch.cat([self._step_of(x[s], current[s], normal[s], gap[s], norm) for s in slices])

    def _step_of(self, x: Tensor, current: Tensor, normal: Tensor, gap: Tensor, norm: str) -> Tensor:
        gaps = torch.stack([gap, gap + (normal * (x - current)).flatten(1).sum(1)])
        points = torch.stack([current, x])
        steps = to_hyperplane(points, normal, gaps, norm)
        near, far = (length(step, norm).clamp_min(1e-8) for step in steps.unbind())
        from_current, from_x = points.add_(steps, alpha=self.eta).unbind()
        return from_current.lerp(from_x, (near / (near + far)).clamp_max(self.alpha_max)).clamp_(0, 1)


@dataclass(frozen=True, kw_only=True)
class FAB(FastAdaptiveBoundary):
    """Towards the nearest of all linearised boundaries, with one backward pass per wrong class and step.

    Parameters as of ``FastAdaptiveBoundary``.
    """

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example, without a radius."""
        return self.restarts * self.steps * (num_classes + 1)

    def aims(self, target: Target, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        yield wrong_classes(y, target.num_classes)


@dataclass(frozen=True, kw_only=True)
class FABT(FastAdaptiveBoundary):
    """Towards one class at a time: each of the ``targets`` wrong classes with the largest logits at the clean image, the first
    alone and the others side by side on small images.

    targets: how many classes; at most all wrong ones. Other parameters as of ``FastAdaptiveBoundary``.

    Without a radius every class is tried and the smallest point kept; the reference stops at the first class that succeeds,
    which need not be the nearest.
    """

    targets: Annotated[int, Field(ge=1)] = 9

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example, without a radius."""
        return 1 + self.restarts * min(self.targets, num_classes - 1) * self.steps * 3

    def aims(self, target: Target, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        ranked = likely_classes(target.logits(x), y, target.num_classes, self.targets)
        yield from (aim[:, None] for aim in ranked.unbind(1))


def _around(target: Target, x: Tensor, threat: Threat, streams: list[Randomness]) -> Tensor:
    """A random point of the box near each clean image, from one stream after the other; see FastAdaptiveBoundary."""
    most = threat.eps if math.isfinite(threat.eps) else REACH[threat.norm]
    known = length(target.best(x) - x, threat.norm)
    reach = torch.where(per_image(target.broken, x), known, most).clamp_max(most)
    noise = torch.cat([random_on_sphere(x, threat.norm, 1.0, stream) for stream in streams])
    return (x + 0.5 * reach * noise).clamp(0, 1)

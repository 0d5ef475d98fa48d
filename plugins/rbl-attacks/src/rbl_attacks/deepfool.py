"""DeepFool (Moosavi-Dezfooli et al., 2016, arXiv:1511.04599) in l2 and linf."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.faces import bisect, distance, nearest_face
from rbl_attacks.geometry import direction, per_image
from rbl_attacks.margins import lead, likely_classes
from robustbench_lite import BudgetExceeded, Randomness, Target, Threat

# Added to the length of each step, so that steps do not end before the boundary is crossed.
SLACK = 1e-4


@dataclass(frozen=True, kw_only=True)
class DeepFool:
    """Step by step to the nearest of the linearised boundaries, until one is crossed.

    steps: at most. overshoot: by how much more than its length the perturbation is applied; on a linear model this is how far
    the result is from the optimum. candidates: classes considered, the likeliest at the clean image, with its own.
    refine: bisections between the clean image and the point found; 0 as published.

    An example leaves as soon as it is beaten, or where no gradient tells it where to go; on a stochastic defense, when the
    target is sure of it, or when it is beaten outside the radius.
    """

    steps: Annotated[int, Field(ge=1)] = 50
    overshoot: Annotated[float, Field(ge=0)] = 0.02
    candidates: Annotated[int, Field(ge=2)] = 10
    refine: Annotated[int, Field(ge=0)] = 0

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example that is never beaten."""
        return 1 + self.steps * (min(self.candidates, num_classes) + 1)

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        aims = likely_classes(target.logits(x), y, target.num_classes, self.candidates - 1)
        with suppress(BudgetExceeded):
            self._search(target, x, y, aims, threat)
        bisect(target, x, y, self.refine)
        return target.best(x)

    def _search(self, target: Target, x: Tensor, y: Tensor, aims: Tensor, threat: Threat) -> None:
        """What it finds, the target keeps."""
        rows, current, moved = torch.arange(len(x), device=x.device), x, torch.zeros_like(x)
        for _ in range(self.steps):
            _, gap, normal = nearest_face(target, current, y[rows], aims[rows], threat.norm, rows)
            away = distance(gap, normal, threat.norm)
            unit = normal.sign() if threat.norm == "linf" else direction(normal)
            moved = moved + per_image(away + SLACK, unit) * unit
            current = (x[rows] + (1 + self.overshoot) * moved).clamp(0, 1)
            told = away < math.inf
            rows, current, moved = rows[told], current[told], moved[told]
            over = lead(target.logits(current, rows), y[rows], target.num_classes) > 0
            if target.stochastic:  # just over a boundary that is random is not far enough: until the target is sure
                over = target.broken[rows] | (over & (threat.size(x[rows], current) > threat.limit))
            rows, current, moved = rows[~over], current[~over], moved[~over]
            if not len(rows):
                return

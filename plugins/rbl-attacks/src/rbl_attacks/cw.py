"""The attack of Carlini & Wagner (2017, arXiv:1608.04644) under l2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.adam import Adam
from rbl_attacks.geometry import per_image
from rbl_attacks.margins import lead
from rbl_attacks.search import ConstantSearch
from robustbench_lite import Randomness, Target, Threat

# Images are shrunk by this much before they go through the inverse of tanh, which is infinite at the faces of the box.
SHRINK = 0.999999
# A run ends where a tenth of its steps did not bring the objective below this share of what it was.
PROGRESS = 0.9999


@dataclass(frozen=True, kw_only=True)
class CarliniWagner:
    """Minimise constant * max(0, confidence - lead of a wrong class) + squared distance, over images (tanh(w) + 1) / 2.

    steps: of Adam in each search step. search_steps: runs, each from the clean image with a constant of its own: see
    ConstantSearch. lr: step size of Adam, in units of w. constant: the first. confidence: by how much a wrong class must lead.
    abort_early: end an example's run where it makes no progress any more; per example, where the references look at the sum
    over the batch.

    Returns the smallest point found that has the confidence. Distances are to the image itself, not to its shrunk form.
    """

    steps: Annotated[int, Field(ge=1)] = 10_000
    search_steps: Annotated[int, Field(ge=1)] = 9
    lr: Annotated[float, Field(gt=0)] = 0.01
    constant: Annotated[float, Field(gt=0)] = 1e-3
    confidence: Annotated[float, Field(ge=0)] = 0.0
    abort_early: bool = True

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example, if no run ends early."""
        return 2 * self.search_steps * self.steps

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        best, size = x.clone(), x.new_full((len(x),), math.inf)
        search = ConstantSearch(x, first=self.constant, rounds=self.search_steps)
        for constant in search:
            search.learn(self._descend(target, x, y, constant, best, size))
        return best

    def _descend(self, target: Target, x: Tensor, y: Tensor, constant: Tensor, best: Tensor, size: Tensor) -> Tensor:
        """One run. Better points than ``best`` (N, ...) of ``size`` (N,) replace them; returns (N,) whether one was found."""
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        rows, measure = torch.arange(len(x), device=x.device), partial(lead, classes=target.num_classes)
        w = torch.atanh((2 * x - 1) * SHRINK)
        origin, adam = (w.tanh() + 1) / 2, Adam(w)
        before = torch.full_like(size, math.inf)
        every = max(1, self.steps // 10)
        for number in range(self.steps):
            bent = w.tanh()
            points = (bent + 1) / 2
            _, ahead, gradient = target.loss_and_grad(points, measure, y, index=rows)
            self._keep(points, x, rows, ahead > self.confidence, found, best, size)
            delta = points - origin
            if self.abort_early and number % every == 0:
                objective = constant * (self.confidence - ahead).clamp_min(0) + delta.square().flatten(1).sum(1)
                going = objective <= PROGRESS * before
                before = objective
                if not bool(going.all()):
                    rows, w, bent, delta, gradient, ahead = (p[going] for p in (rows, w, bent, delta, gradient, ahead))
                    x, y, origin, constant, before = (p[going] for p in (x, y, origin, constant, before))
                    adam.keep(going)
                if not len(rows):
                    break
            pull = torch.where(ahead < self.confidence, constant, 0)
            slope = (2 * delta - per_image(pull, gradient) * gradient.nan_to_num(0, 0, 0)) * (1 - bent.square()) / 2
            w = w - adam.move(slope, self.lr)
        return found

    def _keep(self, points: Tensor, x: Tensor, rows: Tensor, good: Tensor, found: Tensor, best: Tensor, size: Tensor) -> None:
        found[rows] |= good
        reach = torch.linalg.vector_norm((points - x).flatten(1), dim=1)
        better = good & (reach < size[rows])
        at = rows[better]
        best[at], size[at] = points[better], reach[better]

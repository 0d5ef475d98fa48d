"""Fast minimum norm (Pintor et al., 2021, arXiv:2102.12827) in linf, l2, l1 and l0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.ddn import annealed
from rbl_attacks.faces import DUAL
from rbl_attacks.geometry import TINY, direction, length
from rbl_attacks.margins import lead
from robustbench_lite import Randomness, Target, Threat, projections

PROJECT = {"linf": projections.linf, "l2": projections.l2, "l1": projections.l1, "l0": projections.l0}


@dataclass(frozen=True, kw_only=True)
class FMN:
    """Steps along the gradient of the margin, each projected into a ball; the ball shrinks where the point is adversarial,
    grows where it is not but some point was found, and reaches to the linearised boundary before that.

    steps: gradient steps. step: Euclidean length of the first one; it falls to a hundredth along a half cosine. gamma: share
    by which the radius changes at the first step; it falls to 0.001 along the same curve. overshoot: by how much more than
    the way to the linearised boundary the radius is before anything is found.

    Under l0 the radius is a number of pixels (for shapes other than (N, C, H, W), of values), which changes by at least one;
    an example leaves at its first point with one changed pixel.

    Differs from the reference: ``overshoot``, of which 0 restores the published rule. On networks of ReLUs, which are linear
    around the image, that rule aims exactly at the boundary, and stops just before it for good: on one of the test networks
    it finds a point under l2 for a fifth of the images. With overshoot, the radius also never shrinks before anything is found.
    A last forward pass evaluates the last point, which is otherwise never looked at. Under l0 it counts pixels, all channels
    of one together, as the threat model does. It starts at the clean image; starts from points of other classes are left out.

    On a stochastic defense only what the target is sure of is found: until then the radius grows, up to the threat's own.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    step: Annotated[float, Field(gt=0)] = 1.0
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.05
    overshoot: Annotated[float, Field(ge=0)] = 0.05

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example."""
        return 2 * self.steps + 1

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        norm, classes, project = threat.norm, target.num_classes, PROJECT[threat.norm]
        gap_of = partial(lead, classes=classes)
        rows, clean, current = torch.arange(len(x), device=x.device), x, x
        farthest = _size(torch.maximum(x, 1 - x), norm)
        if target.stochastic:  # where nothing is sure, the radius grows without end
            farthest = farthest.clamp_max(threat.eps)
        radius = torch.full_like(farthest, 1 if norm == "l0" else math.inf)
        best, found = farthest, torch.zeros_like(rows, dtype=torch.bool)
        for number in range(self.steps):
            share = number / self.steps
            gamma = annealed(self.gamma, min(0.001, self.gamma), share)
            logits, gap, gradient = target.loss_and_grad(current, gap_of, y, index=rows)
            beaten = lead(logits, y, classes) > 0
            delta = current - clean
            size = _size(delta, norm)
            if target.stochastic:
                found = target.broken[rows]
                best = torch.where(found, _size(target.best(x)[rows] - clean, norm), farthest)
                beaten &= found
            else:
                best, found = torch.where(beaten, torch.minimum(best, size), best), found | beaten
            if norm == "l0":
                smaller = torch.minimum(torch.minimum(radius - 1, (radius * (1 - gamma)).floor()), best)
                larger = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
                radius = torch.where(beaten, smaller, larger).clamp_min(1)
            else:
                away = gap.abs() / length(gradient, DUAL[norm]).flatten().clamp_min(TINY)
                ahead = ((1 + self.overshoot) * (size + away)).nan_to_num(nan=math.inf)
                grown = radius * (1 + gamma)
                if self.overshoot and number:
                    ahead = torch.maximum(ahead, grown)
                larger = torch.where(found, grown, ahead)
                radius = torch.where(beaten, torch.minimum(radius * (1 - gamma), best), larger)
            radius = torch.minimum(radius, farthest)
            delta = project(delta + annealed(self.step, 0.01 * self.step, share) * direction(gradient), radius)
            current = (clean + delta).clamp(0, 1)
            if norm == "l0" and bool((found & (best == 1)).any()):
                stay = ~found | (best != 1)
                rows, clean, current, y, farthest = rows[stay], clean[stay], current[stay], y[stay], farthest[stay]
                radius, best, found = radius[stay], best[stay], found[stay]
                if not len(rows):
                    return target.best(x)
        target.logits(current, rows)
        return target.best(x)


def _size(delta: Tensor, norm: str) -> Tensor:
    """(N,) size of each perturbation (N, ...), in pixels under l0."""
    if norm == "l0":
        changed = (delta != 0).any(1) if delta.dim() == 4 else delta != 0
        return changed.flatten(1).sum(1).to(delta.dtype)
    return length(delta, norm).flatten()

"""Sigma-zero (Cina et al., 2025, arXiv:2402.01879): l0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.adam import Adam
from rbl_attacks.ddn import annealed
from rbl_attacks.geometry import direction, per_image
from rbl_attacks.margins import lead
from robustbench_lite import Randomness, Target, Threat


@dataclass(frozen=True, kw_only=True)
class SigmaZero:
    """Adam on the margin plus a smooth count of changed values, with small changes set to zero after each step.

    steps: gradient steps. step: of Adam, at first; it falls to a tenth along a half cosine. sigma: a change of sqrt(sigma)
    counts for half a value. threshold: changes below it are undone; it rises by ``rise`` times the step size where the point
    is adversarial, and falls by as much where it is not.

    What becomes sparse are values, of all channels; the threat model counts pixels, and the smallest point by that count is
    kept. An example leaves at its first point with one changed pixel. Follows the authors' paper and the port in
    adversarial-library: in the official code the threshold never changes. A last forward pass evaluates the last point, which
    is otherwise never looked at.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    step: Annotated[float, Field(gt=0)] = 1.0
    sigma: Annotated[float, Field(gt=0)] = 1e-3
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.3
    rise: Annotated[float, Field(ge=0)] = 0.01

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example."""
        return 2 * self.steps + 1

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        classes, values = target.num_classes, x[0].numel()
        gap_of = partial(lead, classes=classes)
        rows, clean, delta = torch.arange(len(x), device=x.device), x, torch.zeros_like(x)
        adam, threshold, step = Adam(x), x.new_full((len(x),), self.threshold), self.step
        for number in range(self.steps):
            logits, _, gradient = target.loss_and_grad(clean + delta, gap_of, y, index=rows)
            beaten = lead(logits, y, classes) > 0
            done = beaten & (_changed(delta) == 1)
            if target.stochastic:
                done = target.broken[rows] & (_changed(target.best(x)[rows] - clean) == 1)
            if bool(done.any()):
                stay = ~done
                rows, clean, delta, y, gradient = rows[stay], clean[stay], delta[stay], y[stay], gradient[stay]
                threshold, beaten = threshold[stay], beaten[stay]
                adam.keep(stay)
                if not len(rows):
                    return target.best(x)
            # Adversarial points have nothing to gain from the margin, and go on towards fewer changes.
            sparser = 2 * self.sigma * delta / (delta.square() + self.sigma).square() / values
            gradient = direction(torch.where(per_image(beaten, x), sparser, sparser - gradient), "linf")
            delta = (clean + (delta - adam.move(gradient, step))).clamp_(0, 1) - clean
            step = annealed(self.step, 0.1 * self.step, number / self.steps)
            threshold = (threshold + self.rise * step * torch.where(beaten, 1.0, -1.0)).clamp_(0, 1)
            delta = torch.where(delta.abs() < per_image(threshold, delta), 0, delta)
        target.logits(clean + delta, rows)
        return target.best(x)


def _changed(delta: Tensor) -> Tensor:
    """(n,) how many pixels are not 0."""
    return (delta != 0).any(1).flatten(1).sum(1)

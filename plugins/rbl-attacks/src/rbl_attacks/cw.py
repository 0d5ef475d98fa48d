"""The attack of Carlini & Wagner (2017, arXiv:1608.04644) under l2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rbl_attacks.adam import Adam
from rbl_attacks.geometry import length
from rbl_attacks.margins import lead
from rbl_attacks.search import Penalty, PenaltyMethod, Smallest
from robustbench_lite import Target

# Images are shrunk by this much before they go through the inverse of tanh, which is infinite at the faces of the box.
SHRINK = 0.999999


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(PenaltyMethod):
    """Minimise constant * max(0, confidence - lead of a wrong class) + squared distance, over images (tanh(w) + 1) / 2.

    steps: of Adam in each search step. search_steps: runs, each from the clean image with a constant of its own: see
    ConstantSearch. lr: step size of Adam, in units of w. constant: the first. confidence: by how much a wrong class must lead.
    abort_early: end an example's run where it makes no progress any more; per example, where the references look at the sum
    over the batch, and on a stochastic defense by the mean over a tenth of the steps.

    Returns the smallest point found that has the confidence: with one above 0, nothing else that the target saw counts.
    Distances are to the image itself, not to its shrunk form. On a stochastic defense ten steps are judged together, and the
    largest of their points is what they found.
    """

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example, if no run ends early."""
        return 2 * self.search_steps * self.steps

    def _descend(self, target: Target, rows: Tensor, x: Tensor, y: Tensor, penalty: Penalty, best: Smallest) -> None:
        measure = partial(lead, classes=target.num_classes)
        w = torch.atanh((2 * x.double() - 1) * SHRINK).to(x.dtype)  # float32's rounds by where a value stands in the batch
        origin, adam = (w.tanh() + 1) / 2, Adam(w)
        for number in range(self.steps):
            bent = w.tanh()
            points = (bent + 1) / 2
            _, ahead, gradient = target.loss_and_grad(points, measure, y, index=rows)
            best.see(rows, points, ahead, length(points - x, "l2").flatten())
            delta = points - origin
            if (going := penalty.going(number, ahead, delta)) is not None:
                rows, w, bent, delta, gradient, ahead = (p[going] for p in (rows, w, bent, delta, gradient, ahead))
                x, y, origin = x[going], y[going], origin[going]
                adam.keep(going)
                if not len(rows):
                    break
            w = w - adam.move(penalty.slope(ahead, gradient, delta) * (1 - bent.square()) / 2, self.lr)

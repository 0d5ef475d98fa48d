"""The nearest boundary between classes, linearised, and bisection to the boundary itself."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from rbl_attacks.geometry import TINY, length, per_image
from rbl_attacks.margins import lead, leads_of
from robustbench_lite import BudgetExceeded, Target

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


def nearest_face(
    target: Target, points: Tensor, y: Tensor, aims: Tensor, norm: str, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the boundaries between the label and the classes ``aims`` (n, k), linearised at the points, the nearest in ``norm``.

    Returns the logits (n, C), the lead of that class (n,), and the gradient of that lead (n, ...). One forward and k backward
    passes. Lead and gradient are zero where no class has a finite gradient other than zero.
    """
    measure = partial(leads_of, classes=target.num_classes)
    if aims.shape[1] > 1:
        return target.least_loss_and_grad(points, measure, partial(distance, norm=norm), y, aims, index=rows)
    logits, gap, normal = target.loss_and_grad(points, lambda *given: measure(*given).squeeze(1), y, aims, index=rows)
    unusable = ~(distance(gap, normal, norm) < math.inf)
    return logits, gap.masked_fill(unusable, 0), normal.masked_fill(per_image(unusable, normal), 0)


def distance(gap: Tensor, normal: Tensor, norm: str) -> Tensor:
    """(n,) how far in ``norm`` the plane is on which a function with value gap (n,) and gradient (n, ...) is zero; or inf."""
    size = length(normal, DUAL[norm]).flatten()
    return torch.where((size > 0) & (size < math.inf), gap.abs() / (size + TINY), math.inf)


def bisect(target: Target, x: Tensor, y: Tensor, steps: int) -> None:
    """Halve ``steps`` times the stretch between each clean image and its best point in which the boundary lies."""
    for rows in target.evenly_spent(target.broken.nonzero()[:, 0]):
        near, far = x[rows], target.best(x)[rows]
        with suppress(BudgetExceeded):
            for _ in range(steps if len(rows) else 0):
                middle = (near + far) / 2
                beaten = per_image(lead(target.logits(middle, rows), y[rows], target.num_classes) > 0, x)
                near, far = torch.where(beaten, near, middle), torch.where(beaten, middle, far)

"""The best point of each example over many proposals, and attempts in sequence, each on what the earlier ones left."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robustbench_lite import Target


class Best:
    """The point of the highest loss of each example of x (N, ...), and that loss (N,): at first x itself, and -inf."""

    def __init__(self, x: Tensor) -> None:
        self.points = x.clone()
        self.loss = x.new_full((len(x),), -math.inf, dtype=torch.float64)

    def keep(self, rows: Tensor, points: Tensor, loss: Tensor) -> Tensor:
        """Keep those points (n, ...) of the examples ``rows`` (n,) whose loss (n,) is higher than all before: (n,) bool."""
        better = loss > self.loss[rows]
        kept = rows[better]
        self.points[kept], self.loss[kept] = points[better], loss[better].double()
        return better


def best_of(runs: int, run: Callable[[int, Target, Tensor], tuple[Tensor, Tensor]], target: Target, x: Tensor) -> Tensor:
    """What ``runs`` attempts, each on what the earlier ones left, make of x (N, ...).

    run: called with its number, and the target of the n examples that are left with their rows (n,) in x; returns points
    (n, ...) and their losses (n,). The result is the beaten point of each example, otherwise the one with the highest loss.
    """
    best = Best(x)
    for number in range(runs):
        rows = (~target.broken).nonzero()[:, 0]
        if not len(rows):
            break
        points, loss = run(number, target if len(rows) == len(x) else target.select(rows), rows)
        best.keep(rows, points, loss)
    return target.best(best.points)

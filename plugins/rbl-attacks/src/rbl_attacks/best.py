"""The best point of each example over many proposals, and attempts in sequence or side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from robustbench_lite import Target

# How many values the copies of one example may have together that are worked on side by side: all runs on small images, one at
# a time on large ones. It must not depend on how many examples there are, because the point that is found first may.
TOGETHER = 1 << 14

Runs = TypeVar("Runs")


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


def best_of(
    sequence: Iterable[Runs],
    attempt: Callable[[Runs, Target, Tensor], tuple[Tensor, Tensor]],
    target: Target,
    x: Tensor,
) -> Tensor:
    """What attempts in sequence, each on what the earlier ones left, make of x (N, ...).

    attempt: called with its entry of ``sequence``, and the target of the n examples that are left with their rows (n,) in x;
    returns points (k n, ...) and losses (k n,), k runs one after the other. The result is the beaten point of each example,
    otherwise the one with the highest loss.
    """
    best = Best(x)
    for runs in sequence:
        rows = (~target.broken).nonzero()[:, 0]
        if not len(rows):
            break
        points, loss = attempt(runs, target if len(rows) == len(x) else target.select(rows), rows)
        for run in zip(torch.split(points, len(rows)), torch.split(loss, len(rows)), strict=True):
            best.keep(rows, *run)
    return target.best(best.points)


def side_by_side(runs: int, x: Tensor) -> list[range]:
    """The numbers of ``runs`` on x (N, ...), which do not build on each other, by what is done at once.

    The first is alone: it beats most of what can be beaten, for the least. The others, on what it left, are few examples each
    and cheaper in the same passes.
    """
    together = max(1, TOGETHER // max(1, x[:1].numel()))
    return [range(1), *(range(first, min(first + together, runs)) for first in range(1, runs, together))]

"""Sparse-RS (Croce et al., 2022, arXiv:2006.12834): random search over few pixels, from scores alone."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.decision import affords
from rbl_attacks.margins import lead
from robustbench_lite import Randomness, Target, Threat

# Up to these queries (of 10,000) the share of pixels that change at once is alpha over the divisor of the same place.
UNTIL = (0, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
DIVISORS = (1, 2, 4, 5, 6, 8, 10, 12, 15, 20)


@dataclass(frozen=True, kw_only=True)
class SparseRS:
    """Exactly eps pixels stand at corners of the colour cube; some of them move elsewhere wherever that raises the margin.

    queries: per example. alpha: share of the pixels that move in the first proposals; later ones move fewer, at least one.
    rescale: stretch the schedule, made for 10,000 queries, to ``queries``.

    Every example has pixels and colours of its own. A pixel that moves alone gets another colour than it had, as in the
    reference; so a pixel is left unchanged only where one of several was given its own colour. Where eps is the whole image,
    pixels change their colours instead of their places.
    """

    queries: Annotated[int, Field(ge=1)] = 10_000
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.3
    rescale: bool = True

    def passes(self, num_classes: int) -> int:
        """Forward passes per example that is never beaten."""
        return self.queries

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        clean, label, pixels = x.flatten(2), y, math.prod(x.shape[2:])
        count = min(int(threat.eps), pixels)
        if not count:
            return x.clone()
        # (n, pixels): an order of each example's pixels, of which the first ``count`` are those that stand at a corner.
        order = rng.child("pixels").permutation(None, pixels)
        painted = rng.child("start").sign(None, (x.shape[1], count))
        current = _paint(clean, order[:, :count], (painted > 0).to(x.dtype))
        best, loss = current.clone(), x.new_full((len(x),), -math.inf)
        left, draws, colours = torch.arange(len(x), device=x.device), rng, rng.child("colours")
        point, swapped = current, order
        for query in range(self.queries):
            alive = ~target.broken[left] & affords(target, left)
            if not bool(alive.all()):
                best[left] = current
                left, clean, label, order, current, loss = (part[alive] for part in (left, clean, label, order, current, loss))
                draws, colours = rng.select(left), rng.child("colours").select(left)
            if not len(left):
                break
            if query:
                point, swapped = self._propose(clean, current, order, draws, colours, count, query)
            seen = lead(target.logits(point.view(-1, *x.shape[1:]), left), label, target.num_classes)
            better = seen > loss
            loss = torch.where(better, seen, loss)
            current = torch.where(better[:, None, None], point, current)
            order = torch.where(better[:, None], swapped, order)
        best[left] = current
        return target.best(best.view_as(x))

    def moved(self, query: int, count: int) -> int:
        """How many of the ``count`` pixels move in the proposal of this query."""
        at = query * 10_000 // self.queries if self.rescale else query
        return max(int(self.alpha / DIVISORS[bisect.bisect_left(UNTIL, at)] * count), 1)

    def _propose(
        self, clean: Tensor, current: Tensor, order: Tensor, draws: Randomness, colours: Randomness, count: int, query: int
    ) -> tuple[Tensor, Tensor]:
        """Each example's next point (n, C, pixels), and its pixels' order, in which those that moved have swapped places."""
        free = order.shape[1] - count
        moved = min(self.moved(query, count), free or count)
        first = _distinct(draws.uniform(None, (moved,), draw=query), count)
        other = first
        if free:
            other = count + _distinct(draws.child("to").uniform(None, (moved,), draw=query), free)
        out, into = order.gather(1, first), order.gather(1, other)
        had = _at(current, into)
        colour = (colours.sign(None, had.shape[1:], draw=query) > 0).to(current.dtype)
        if moved == 1:
            colour = torch.where((colour == had).all(1, keepdim=True), 1 - colour, colour)
        point = _paint(_paint(current, out, _at(clean, out)), into, colour)
        return point, order.scatter(1, first, into).scatter(1, other, out)


def _distinct(draw: Tensor, size: int) -> Tensor:
    """(n, m) different places of 0, ..., size - 1, every choice equally likely, from numbers in [0, 1).

    Floyd's way: each number chooses among one place more than the one before, and gets that place if its choice is taken.
    """
    last = torch.arange(size - draw.shape[1], size, device=draw.device)
    places = (draw * (last + 1)).long()
    for i in range(1, draw.shape[1]):
        taken = (places[:, :i] == places[:, i, None]).any(1)
        places[:, i] = torch.where(taken, last[i], places[:, i])
    return places


def _at(image: Tensor, pixels: Tensor) -> Tensor:
    """(n, C, m) the values of an image (n, C, pixels) at some of its pixels (n, m)."""
    return image.gather(2, pixels[:, None].expand(-1, image.shape[1], -1))


def _paint(image: Tensor, pixels: Tensor, colour: Tensor) -> Tensor:
    """The image (n, C, pixels) with the pixels (n, m) in their colours (n, C, m)."""
    return image.scatter(2, pixels[:, None].expand(-1, image.shape[1], -1), colour)

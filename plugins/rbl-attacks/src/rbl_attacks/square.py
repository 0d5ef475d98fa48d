"""Square Attack (Andriushchenko et al., 2020, arXiv:1912.00049), and its l1 form (Croce & Hein, 2021, arXiv:2103.01208)."""

from __future__ import annotations

import bisect
import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.best import best_of
from rbl_attacks.decision import continues
from rbl_attacks.geometry import PORTION, TINY, length, on_sphere
from rbl_attacks.margins import lead
from robustbench_lite import Randomness, Target, Threat

# Share of the image that a window covers, halved after these iterations (of 10,000).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True, kw_only=True)
class Square:
    """Random search: change a square window, keep the change where the margin falls.

    queries: per example and restart. p_init: share of the image that the first window covers. rescale: stretch the schedule
    of window sizes, made for 10,000 queries, to ``queries``; AutoAttack does not. restarts: runs on what is left.

    Every example has its own windows and signs, so that nothing depends on the batch. Windows may touch the last row and
    column (the references' do not). Images of any height and width: where a square does not fit, its long side grows.
    """

    queries: Annotated[int, Field(ge=1)] = 5000
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.8
    restarts: Annotated[int, Field(ge=1)] = 1
    rescale: bool = False

    def passes(self, num_classes: int) -> int:
        """Forward passes per example that is never beaten."""
        return self.restarts * self.queries

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        def run(number: int, left: Target, rows: Tensor) -> tuple[Tensor, Tensor]:
            return self._search(left, x[rows], y[rows], threat, rng.select(rows).child("restart", number))

        return best_of(self.restarts, run, target, x)

    def share(self, query: int) -> float:
        """The share of the image that the window of this query covers."""
        at = query * 10_000 // self.queries if self.rescale else query
        return float(self.p_init / 2 ** bisect.bisect_left(HALVINGS, at))

    def _search(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> tuple[Tensor, Tensor]:
        """One restart on n examples: each one's point with the largest margin of a wrong class, and that margin."""
        proposals: Proposals = (Faces if threat.norm == "linf" else Masses)(self, x, threat, rng)
        best, best_loss = x.clone(), x.new_full((len(x),), -math.inf)
        left = torch.arange(len(x), device=x.device)
        current, loss, label = proposals.start(rng.child("start")), best_loss.clone(), y
        for query in range(self.queries):
            alive = continues(target, threat, left, 1)
            if not bool(alive.all()):
                best[left], best_loss[left] = current, loss
                left, current, loss, label = left[alive], current[alive], loss[alive], label[alive]
                proposals.keep(alive)
            if not len(left):
                return best, best_loss
            point = proposals.from_points(current, query) if query else current
            seen = lead(target.logits(point, left), label, target.num_classes)
            better = seen > loss
            current = torch.where(better[:, None, None, None], point, current)
            loss = torch.where(better, seen, loss)
        best[left], best_loss[left] = current, loss
        return best, best_loss


class Proposals(ABC):
    """Where the search looks next, of n examples x (n, C, H, W).

    What a query needs in random numbers is drawn, and turned into places, for many queries at once: for few numbers every
    operation is all overhead.
    """

    AHEAD = 64

    def __init__(self, square: Square, x: Tensor, threat: Threat, rng: Randomness) -> None:
        self.square, self.x, self.threat, self.rng = square, x, threat, rng
        self.left = torch.arange(len(x), device=x.device)
        self.block_of, self.block = range(0), tuple[Tensor, ...]()

    @abstractmethod
    def start(self, rng: Randomness) -> Tensor:
        """(n, C, H, W) the first points."""

    @abstractmethod
    def prepare(self, draws: Tensor, window: tuple[int, int]) -> tuple[Tensor, ...]:
        """What ``move`` is given, of k queries, each (k, n, ...). draws: (k, n, 5 + C) uniform in [0, 1)."""

    @abstractmethod
    def move(self, current: Tensor, *prepared: Tensor) -> Tensor:
        """Points (n, C, H, W), each one window away from ``current``."""

    def window(self, query: int) -> tuple[int, int]:
        """Rows and columns of the window of this query."""
        return window_size(self.square.share(query), *self.x.shape[2:])

    def from_points(self, current: Tensor, query: int) -> Tensor:
        """(n, C, H, W) where this query looks."""
        if query not in self.block_of:
            n, count, window = len(self.left), 5 + self.x.shape[1], self.window(query)
            ahead = min(self.AHEAD, max(1, PORTION // self.x[:, 0].numel()))  # so that masks of large images fit in memory
            self.block_of = range(
                query, next(q for q in itertools.count(query + 1) if q == query + ahead or self.window(q) != window)
            )
            queries = torch.arange(query, self.block_of.stop, device=self.x.device)
            draws = self.rng.uniform(self.left.repeat(len(queries)), (count,), draw=queries.repeat_interleave(n))
            self.block = self.prepare(draws.view(len(queries), n, count), window)
        return self.move(current, *(part[query - self.block_of.start] for part in self.block))

    def keep(self, alive: Tensor) -> None:
        """Forget all examples but these (bool mask)."""
        self.left, self.x = self.left[alive], self.x[alive]
        self.block = tuple(part[:, alive] for part in self.block)


class Faces(Proposals):
    """Under linf: a window moves to one face of the ball in each channel."""

    def __init__(self, square: Square, x: Tensor, threat: Threat, rng: Randomness) -> None:
        super().__init__(square, x, threat, rng)
        self.low, self.high = threat.project(x, x - 2), threat.project(x, x + 2)

    def start(self, rng: Randomness) -> Tensor:
        """Vertical stripes, a face for each channel and column."""
        sign = rng.sign(None, (self.x.shape[1], 1, self.x.shape[3]))
        return torch.where(sign > 0, self.high, self.low)

    def prepare(self, draws: Tensor, window: tuple[int, int]) -> tuple[Tensor, ...]:
        height, width = self.x.shape[2:]
        rows, columns = _inside(draws[..., 0], height, window[0]), _inside(draws[..., 1], width, window[1])
        return rows[:, :, None, :, None], columns[:, :, None, None], draws[..., 2 : 2 + self.x.shape[1], None, None] < 0.5

    def move(self, current: Tensor, *prepared: Tensor) -> Tensor:
        rows, columns, falls = prepared
        return torch.where(rows & columns, torch.where(falls, self.low, self.high), current)

    def keep(self, alive: Tensor) -> None:
        super().keep(alive)
        self.low, self.high = self.low[alive], self.high[alive]


class Masses(Proposals):
    """Under l2 and l1: one window gives up its perturbation, and another gets it, and what the radius still allows."""

    def start(self, rng: Randomness) -> Tensor:
        """The image tiled with patterns of a fifth of its height, a sign for each channel and tile."""
        x, norm = self.x, self.threat.norm
        _, channels, height, width = x.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        sign = rng.sign(None, (channels, rows, columns)).repeat_interleave(side, 2).repeat_interleave(side, 3)
        turned = rng.child("turn").sign(None, (1, rows, columns)).repeat_interleave(side, 2).repeat_interleave(side, 3) > 0
        plain = pattern(side, side, _power(norm)).to(x).repeat(rows, columns)
        tilted = pattern(side, side, _power(norm)).T.to(x).repeat(rows, columns)
        delta = torch.zeros_like(x)
        top, first = (height - rows * side) // 2, (width - columns * side) // 2
        delta[:, :, top : top + rows * side, first : first + columns * side] = sign * torch.where(turned, tilted, plain)
        return self.threat.project(x, x + on_sphere(delta, norm, self.threat.eps))

    def window(self, query: int) -> tuple[int, int]:
        """At least 3 rows and columns, where there are so many, and odd ones: a pattern has a centre."""
        height, width = self.x.shape[2:]
        rows, columns = super().window(query)
        return min(max(rows, 3) | 1, height), min(max(columns, 3) | 1, width)

    def prepare(self, draws: Tensor, window: tuple[int, int]) -> tuple[Tensor, ...]:
        """Of the window that gains, its places in a flat image and its pattern; masks of the one that gives, and of both."""
        (height, width), norm = self.x.shape[2:], self.threat.norm
        sizes = list(zip((0, 1), (height, width), window, strict=True))
        down, right = (
            _corner(draws[..., i], size, side)[..., None] + torch.arange(side, device=draws.device) for i, size, side in sizes
        )
        gain_rows, gain_columns = (_inside(draws[..., i], size, side) for i, size, side in sizes)
        give_rows, give_columns = (_inside(draws[..., 2 + i], size, side) for i, size, side in sizes)
        gives = give_rows[..., None] & give_columns[:, :, None]
        either = gives | (gain_rows[..., None] & gain_columns[:, :, None])
        plain, tilted = (p.to(self.x) for p in (pattern(*window, _power(norm)), pattern(*window[::-1], _power(norm)).T))
        hill = torch.where(draws[..., 4, None] < 0.5, tilted.flatten(), plain.flatten())
        signs = torch.where(draws[..., 5:] < 0.5, -1.0, 1.0)
        places = (down[..., None] * width + right[:, :, None]).flatten(2)[:, :, None].expand(-1, -1, self.x.shape[1], -1)
        masks = (mask.flatten(2)[:, :, None] for mask in (gives, either))
        return places, signs[..., None] * hill[:, :, None], *masks

    def move(self, current: Tensor, *prepared: Tensor) -> Tensor:
        places, hills, gives, either = prepared
        x, norm, eps, channels = self.x, self.threat.norm, self.threat.eps, self.x.shape[1]
        delta = (current - x).flatten(2)
        old = delta.gather(2, places)
        new = hills + old / (TINY + _per_channel(old, norm))
        new /= TINY + _per_channel(new, norm)
        held, spent = _per_channel(delta.where(either, 0), norm), length(delta, norm)
        if norm == "l2":
            new *= ((eps**2 - spent.square()).clamp_min(0) / channels + held.square()).sqrt()
        else:
            new *= ((eps - spent).clamp_min(0) / channels + held) * channels
        delta = delta.masked_fill(gives, 0).scatter_(2, places, new)
        return self.threat.project(x, x + (on_sphere(delta, "l2", eps) if norm == "l2" else delta).view_as(x))


def window_size(share: float, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a window that covers about this share of the image: a square, where one fits."""
    side = max(round(math.sqrt(share * height * width)), 1)
    if side <= min(height, width):
        return side, side
    if height <= width:
        return height, min(width, max(1, round(share * width)))
    return min(height, max(1, round(share * height))), width


def _corner(draws: Tensor, size: int, side: int) -> Tensor:
    """The first row of a window of so many rows, uniform over all that fit; draws: uniform in [0, 1)."""
    return (draws * (size - side + 1)).long()


def _inside(draws: Tensor, size: int, side: int) -> Tensor:
    """(..., size) bool: the rows that a window takes; see ``_corner``."""
    below = torch.arange(size, device=draws.device) - _corner(draws, size, side)[..., None]
    return (below >= 0) & (below < side)


def _power(norm: str) -> int:
    return 2 if norm == "l2" else 4


def _per_channel(delta: Tensor, norm: str) -> Tensor:
    """(n, channels, 1) length of each channel of (n, channels, values)."""
    lengths: Tensor = torch.linalg.vector_norm(delta, ord=2 if norm == "l2" else 1, dim=2, keepdim=True)
    return lengths


@lru_cache(maxsize=512)
def pattern(height: int, width: int, power: int) -> Tensor:
    """Two hills of opposite sign, one above the other, that fall off from their centres: (height, width), unit length.

    power 2: for l2; power 4: for l1, with sharper peaks.
    """
    top = height // 2
    whole = torch.cat([_hill(top, width, power), -_hill(height - top, width, power)])
    return _unit(whole, power)


def _hill(height: int, width: int, power: int) -> Tensor:
    """Centred boxes of half-width k = 0, 1, ..., each of weight 1 / (k + 1)^power, added up; unit length."""
    if not height:
        return torch.zeros(0, width)
    down = (torch.arange(height) - height // 2).abs()[:, None]
    right = (torch.arange(width) - width // 2).abs()[None]
    count = max(height, width) // 2 + 1
    weights = (1.0 / torch.arange(1, count + 1, dtype=torch.float64) ** power).flip(0).cumsum(0).flip(0).float()
    hill = weights[torch.maximum(down, right)]
    return _unit(hill, power)


def _unit(plane: Tensor, power: int) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(plane, ord=2 if power == 2 else 1)
    return plane / size

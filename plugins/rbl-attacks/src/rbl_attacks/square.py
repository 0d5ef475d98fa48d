"""Square Attack (Andriushchenko et al., 2020, arXiv:1912.00049), and its l1 form (Croce & Hein, 2021, arXiv:2103.01208)."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.best import best_of
from rbl_attacks.decision import affords
from rbl_attacks.geometry import TINY, length, on_sphere
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
        stripes, propose = (_stripes, _recolour) if threat.norm == "linf" else (_tiles, _move_mass)
        best, best_loss = x.clone(), x.new_full((len(x),), -math.inf)
        left, draws = torch.arange(len(x), device=x.device), _Draws(rng, 5 + x.shape[1])
        current, loss, clean, label = stripes(x, threat, rng.child("start")), best_loss.clone(), x, y
        for query in range(self.queries):
            alive = ~target.broken[left] & affords(target, left)
            if not bool(alive.all()):
                best[left], best_loss[left] = current, loss
                left = left[alive]
                current, loss, clean, label = current[alive], loss[alive], clean[alive], label[alive]
                draws.keep(alive)
            if not len(left):
                return best, best_loss
            point = current
            if query:
                window = window_size(self.share(query), *x.shape[2:])
                point = propose(clean, current, threat, draws.of(query), window)
            seen = lead(target.logits(point, left), label, target.num_classes)
            better = seen > loss
            current = torch.where(better[:, None, None, None], point, current)
            loss = torch.where(better, seen, loss)
        best[left], best_loss[left] = current, loss
        return best, best_loss


class _Draws:
    """Uniform numbers for one query after the other, made for many queries at once: for few numbers a call is all overhead."""

    AHEAD = 64

    def __init__(self, rng: Randomness, count: int) -> None:
        self.rng, self.count = rng, count
        self.left = torch.arange(len(rng), device=rng.ids.device)
        self.first, self.block = 0, torch.empty(0, len(rng), count, device=rng.ids.device)

    def of(self, query: int) -> Tensor:
        """(n, count) in [0, 1)."""
        if not self.first <= query < self.first + len(self.block):
            self.first, n = query, len(self.left)
            queries = torch.arange(query, query + self.AHEAD, device=self.left.device).repeat_interleave(n)
            self.block = self.rng.uniform(self.left.repeat(self.AHEAD), (self.count,), draw=queries).view(self.AHEAD, n, -1)
        return self.block[query - self.first]

    def keep(self, alive: Tensor) -> None:
        """Forget all examples but these (bool mask)."""
        self.left, self.block = self.left[alive], self.block[:, alive]


def window_size(share: float, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a window that covers about this share of the image: a square, where one fits."""
    side = max(round(math.sqrt(share * height * width)), 1)
    if side <= min(height, width):
        return side, side
    if height <= width:
        return height, min(width, max(1, round(share * width)))
    return min(height, max(1, round(share * height))), width


def _stripes(x: Tensor, threat: Threat, rng: Randomness) -> Tensor:
    """Start under linf: vertical stripes of +-eps, a sign for each channel and column."""
    return threat.project(x, x + threat.eps * rng.sign(None, (x.shape[1], 1, x.shape[3])))


def _recolour(x: Tensor, current: Tensor, threat: Threat, draws: Tensor, window: tuple[int, int]) -> Tensor:
    """Under linf: a window moves to one face of the ball in each channel."""
    inside = (
        _mask(draws[:, 0], x.shape[2], window[0])[:, None, :, None] & _mask(draws[:, 1], x.shape[3], window[1])[:, None, None]
    )
    sign = torch.where(draws[:, 2 : 2 + x.shape[1]] < 0.5, -1.0, 1.0)[:, :, None, None]
    return threat.project(x, current + (2 * threat.eps) * sign * inside)


def _tiles(x: Tensor, threat: Threat, rng: Randomness) -> Tensor:
    """Start under l2 and l1: the image tiled with patterns of a fifth of its height, a sign for each channel and tile."""
    _, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    sign = rng.sign(None, (channels, rows, columns)).repeat_interleave(side, 2).repeat_interleave(side, 3)
    turned = rng.child("turn").sign(None, (1, rows, columns)).repeat_interleave(side, 2).repeat_interleave(side, 3) > 0
    plain = pattern(side, side, _power(threat.norm)).to(x).repeat(rows, columns)
    tilted = pattern(side, side, _power(threat.norm)).T.to(x).repeat(rows, columns)
    delta = torch.zeros_like(x)
    top, first = (height - rows * side) // 2, (width - columns * side) // 2
    delta[:, :, top : top + rows * side, first : first + columns * side] = sign * torch.where(turned, tilted, plain)
    return threat.project(x, x + on_sphere(delta, threat.norm, threat.eps))


def _move_mass(x: Tensor, current: Tensor, threat: Threat, draws: Tensor, window: tuple[int, int]) -> Tensor:
    """Under l2 and l1: one window gives up its perturbation, and another gets it, and what the radius still allows."""
    norm, (n, channels, height, width) = threat.norm, x.shape
    rows, columns = (min(_odd(side), limit) for side, limit in zip(window, (height, width), strict=True))
    into = _place(draws[:, 0], height, rows)[:, :, None], _place(draws[:, 1], width, columns)[:, None, :]
    out_of = _mask(draws[:, 2], height, rows)[:, :, None] & _mask(draws[:, 3], width, columns)[:, None, :]
    example = torch.arange(n, device=x.device)[:, None, None]
    delta = current - x
    channel_last = delta.permute(0, 2, 3, 1)
    old = channel_last[(example, *into)].permute(0, 3, 1, 2)  # (n, channels, rows, columns)
    taken = out_of.clone()
    taken[(example, *into)] = True
    held = _per_channel(delta * taken[:, None], norm)

    plain, tilted = (p.to(x) for p in (pattern(rows, columns, _power(norm)), pattern(columns, rows, _power(norm)).T))
    turned = (draws[:, 4] < 0.5)[:, None, None, None]
    sign = torch.where(draws[:, 5:] < 0.5, -1.0, 1.0)[:, :, None, None]
    new = sign * torch.where(turned, tilted, plain) + old / (TINY + _per_channel(old, norm))
    new = new / (TINY + _per_channel(new, norm))
    spent = length(delta, norm)
    if norm == "l2":
        new = new * ((threat.eps**2 - spent.square()).clamp_min(0) / channels + held.square()).sqrt()
    else:
        new = new * ((threat.eps - spent).clamp_min(0) / channels + held) * channels
    delta = torch.where(out_of[:, None], 0, delta).permute(0, 2, 3, 1).contiguous()
    delta[(example, *into)] = new.permute(0, 2, 3, 1)
    delta = delta.permute(0, 3, 1, 2)
    return threat.project(x, x + (on_sphere(delta, "l2", threat.eps) if norm == "l2" else delta))


def _corner(draw: Tensor, size: int, window: int) -> Tensor:
    """(n, 1) first row of a window, uniform over all that fit; draw: (n,) uniform in [0, 1)."""
    return (draw * (size - window + 1)).long()[:, None]


def _place(draw: Tensor, size: int, window: int) -> Tensor:
    """(n, window) the rows that a window at a random position takes."""
    return _corner(draw, size, window) + torch.arange(window, device=draw.device)


def _mask(draw: Tensor, size: int, window: int) -> Tensor:
    """(n, size) bool: the rows that a window at a random position takes."""
    corner = _corner(draw, size, window)
    place = torch.arange(size, device=draw.device)
    return (place >= corner) & (place < corner + window)


def _odd(side: int) -> int:
    """At least 3, and odd: a pattern has a centre."""
    return max(side, 3) | 1


def _power(norm: str) -> int:
    return 2 if norm == "l2" else 4


def _per_channel(delta: Tensor, norm: str) -> Tensor:
    """(n, channels, 1, 1) length of each channel."""
    lengths: Tensor = torch.linalg.vector_norm(delta, ord=2 if norm == "l2" else 1, dim=(2, 3), keepdim=True)
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

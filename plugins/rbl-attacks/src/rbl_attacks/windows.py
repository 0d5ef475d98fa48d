"""Where Square looks: windows of an image, and what happens to the perturbation in them."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from rbl_attacks.geometry import PORTION, TINY, length, on_sphere, per_image, select
from robustbench_lite import Randomness, Threat

ROUNDING = 2.0**-25  # half the spacing of float32 just below 1


class Proposals(ABC):
    """Where the search looks next, of n examples x (n, C, H, W). share: of the image that a query's window covers.

    What a query needs in random numbers is drawn, and turned into places, for many queries at once: for few numbers every
    operation is all overhead. Query 0 is the start.

    AHEAD: for how many at most. NUMBERS: how many each takes, beside one for each channel.
    """

    AHEAD = 64
    NUMBERS: int

    def __init__(self, x: Tensor, threat: Threat, rng: Randomness, share: Callable[[int], float], queries: int) -> None:
        self.x, self.threat, self.rng, self.share, self.queries = x, threat, rng, share, queries
        self.left = torch.arange(len(x), device=x.device)
        self.block_of, self.block, self.at = range(0), tuple[Tensor, ...](), 0

    @abstractmethod
    def start(self) -> Tensor:
        """(n, C, H, W) the first points."""

    @abstractmethod
    def prepare(self, draws: Tensor, window: tuple[int, int]) -> tuple[Tensor, ...]:
        """What ``move`` is given, of k queries, each (k, n, ...). draws: as ``numbers`` returns them."""

    @abstractmethod
    def move(self, current: Tensor, *prepared: Tensor) -> Tensor:
        """Points (n, C, H, W), each one window away from ``current``."""

    def next(self, current: Tensor) -> tuple[Tensor | None, Tensor] | None:
        """Who looks somewhere, positions (k,) or None for all, and where, (k, C, H, W); None after the last query.

        current: (n, C, H, W), from where.
        """
        if not self.block_of.stop:
            self.block_of, self.at = range(1), 1
            return None, self.start()
        while self.spent():
            if self.block_of.stop >= self.queries:
                return None
            self.draw(current)
        return self.look(current)

    def window(self, query: int) -> tuple[int, int]:
        """Rows and columns of the window of this query."""
        return window_size(self.share(query), *self.x.shape[2:])

    def draw(self, current: Tensor) -> None:
        """Prepare the next queries, as many as fit in memory."""
        window = self.window(self.block_of.stop)
        self.block = self.prepare(self.numbers(max(1, PORTION // self.x[:, 0].numel())), window)

    def numbers(self, fit: int) -> Tensor:
        """(k, n, NUMBERS + C) uniform in [0, 1), for the next queries: at most ``fit``, and as many as have one window."""
        first, n, count = self.block_of.stop, len(self.left), self.NUMBERS + self.x.shape[1]
        following = range(first, min(first + self.AHEAD, first + fit, self.queries))
        same = itertools.takewhile(lambda query: self.window(query) == self.window(first), following)
        self.block_of, self.at = range(first, max(same) + 1), 0
        queries = torch.arange(first, self.block_of.stop, device=self.x.device)
        draws = self.rng.uniform(self.left.repeat(len(queries)), (count,), draw=queries.repeat_interleave(n))
        return draws.view(len(queries), n, count)

    def spent(self) -> bool:
        """Whether nothing is left of what was prepared."""
        return self.at == len(self.block_of)

    def look(self, current: Tensor) -> tuple[Tensor | None, Tensor]:
        """See ``next``: all take the same query."""
        self.at += 1
        return None, self.move(current, *(part[self.at - 1] for part in self.block))

    def moved(self, rows: Tensor, current: Tensor) -> None:
        """Told of those examples, positions (m,), that went where they had looked; current: (n, C, H, W) of all."""
        return

    def keep(self, rows: Tensor) -> None:
        """Forget all examples but these, positions (k,)."""
        self.left, self.x = select(rows, self.left, self.x)
        self.block = tuple(part[self.at :].index_select(1, rows) for part in self.block)
        self.block_of, self.at = self.block_of[self.at :], 0


class Faces(Proposals):
    """Under linf: a window moves to one face of the ball in each channel."""

    NUMBERS = 2

    def __init__(self, x: Tensor, threat: Threat, rng: Randomness, share: Callable[[int], float], queries: int) -> None:
        super().__init__(x, threat, rng, share, queries)
        self.low, self.high = threat.project(x, x - 2), threat.project(x, x + 2)

    def start(self) -> Tensor:
        """Vertical stripes, a face for each channel and column."""
        sign = self.rng.child("start").sign(self.left, (self.x.shape[1], 1, self.x.shape[3]))
        return torch.where(sign > 0, self.high, self.low)

    def prepare(self, draws: Tensor, window: tuple[int, int]) -> tuple[Tensor, ...]:
        height, width = self.x.shape[2:]
        first, left = _corner(draws[..., 0], height, window[0]), _corner(draws[..., 1], width, window[1])
        rows, columns = _taken(first, height, window[0]), _taken(left, width, window[1])
        return rows[:, :, None, :, None], columns[:, :, None, None], draws[..., 2:, None, None] < 0.5

    def move(self, current: Tensor, *prepared: Tensor) -> Tensor:
        rows, columns, falls = prepared
        return torch.where(rows & columns, torch.where(falls, self.low, self.high), current)

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.low, self.high = select(rows, self.low, self.high)


class NewFaces(Faces):
    """The same without queries whose answer is known: moves that change nothing, or were asked about since the example last
    moved. For defenses that always answer one point alike.

    A move is a place of the window and a face for each channel. On small images there are so few that most of what is drawn
    is known. So that a query still asks about many examples, each goes on to its own next new move among those prepared.

    windows: (places, H, W) bool, all places of the window; None where there are too many moves for any to be drawn twice: then
    all examples take the same query. falls: (2^C, C, 1, 1) bool, the faces. drawn: (n, k) the moves prepared. positions: (k,)
    theirs, 0 to k - 1. earlier: (n, k) where the same move stands before, -1 for nowhere. waiting: (n, k) the positions, and k
    for those that nobody need ask about any more. position: (n,) of the last that was asked about. since: (n,) of the last that
    was made, -1 for none. asked: (n, moves) uint8, which were asked about before these, since the example last moved.
    """

    MOST = 1 << 14  # moves
    TABLE = 1 << 24  # values of windows
    AHEAD = 512  # the more, the fewer examples wait for others at their end
    drawn: Tensor
    positions: Tensor
    since: Tensor

    def __init__(self, x: Tensor, threat: Threat, rng: Randomness, share: Callable[[int], float], queries: int) -> None:
        super().__init__(x, threat, rng, share, queries)
        self.windows: Tensor | None = None
        self.size = (0, 0)  # of these windows

    def draw(self, current: Tensor) -> None:
        size, (n, channels, *sides) = self.window(self.block_of.stop), current.shape
        places = math.prod(side - taken + 1 for side, taken in zip(sides, size, strict=True))
        moves = places << channels
        if moves > self.MOST or places * math.prod(sides) > self.TABLE:
            self.windows = None
            super().draw(current)
            return
        if self.windows is None or size != self.size:
            self.windows, self.size = _windows(size, *sides).to(current.device), size
            channel, face = (torch.arange(count, device=current.device) for count in (channels, 1 << channels))
            self.falls = ((face[:, None] >> channel.flip(0)) & 1 == 1)[:, :, None, None]
            self.asked = torch.zeros((n, moves), dtype=torch.uint8, device=current.device)
        else:  # everybody has asked about all that followed the last move that was made
            self.asked *= self.since[:, None] < 0
            self.asked.scatter_reduce_(1, self.drawn, (self.positions > self.since[:, None]).byte(), "amax")
        self.drawn = self.moves(self.numbers(max(1, PORTION // (8 * n))))  # a query takes some eight int64 while it is drawn
        self.earlier = _earlier(self.drawn)
        self.positions = torch.arange(self.drawn.shape[1], dtype=torch.int16, device=current.device)
        self.since = self.positions.new_full((n,), -1)
        known = self.idle(current, self.low, self.high) | (self.asked > 0)
        self.waiting = self.wait((self.earlier < 0) & ~known.gather(1, self.drawn))

    def moves(self, draws: Tensor) -> Tensor:
        """(n, k) of the numbers (k, n, 2 + C)."""
        height, width = self.x.shape[2:]
        move = _corner(draws[..., 0], height, self.size[0]) * (width - self.size[1] + 1)
        move += _corner(draws[..., 1], width, self.size[1])
        for falls in (draws[..., 2:] < 0.5).unbind(2):
            move = 2 * move + falls
        return move.T.contiguous()

    def wait(self, new: Tensor) -> Tensor:
        """What ``waiting`` is where these (n, k) are to be asked about."""
        return torch.where(new, self.positions, len(self.positions))

    def idle(self, current: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """(n, moves) bool: which moves change nothing, since the whole window is at these faces."""
        away = torch.stack([high - current, current - low], 2)
        if self.size != (1, 1):
            away = max_pool2d(away.flatten(0, 2), self.size, stride=1)
        there = away.view(*current.shape[:2], 2, -1) == 0  # (n, C, 2, places)
        found, *others = there.transpose(2, 3).unbind(1)
        for channel in others:
            found = (found[..., None] & channel[:, :, None]).flatten(2)
        return found.flatten(1)

    def spent(self) -> bool:
        if self.windows is None:
            return super().spent()
        self.position = self.waiting.amin(1)
        self.asking = (self.position < len(self.positions)).nonzero()[:, 0]
        return not len(self.asking)

    def look(self, current: Tensor) -> tuple[Tensor | None, Tensor]:
        if self.windows is None:
            return super().look(current)
        rows, low, high, everybody = self.asking, self.low, self.high, len(self.asking) == len(self.left)
        at = self.position.index_select(0, rows).long()
        move = self.drawn[rows, at]
        self.waiting[rows, at] = len(self.positions)
        if not everybody:
            current, low, high = select(rows, current, low, high)
        channels = current.shape[1]
        inside = self.windows.index_select(0, move >> channels)[:, None]
        falls = self.falls.index_select(0, move & ((1 << channels) - 1))
        return None if everybody else rows, torch.where(inside, torch.where(falls, low, high), current)

    def moved(self, rows: Tensor, current: Tensor) -> None:
        if self.windows is None:
            return
        drawn, earlier, at, *images = select(rows, self.drawn, self.earlier, self.position, current, self.low, self.high)
        since = at[:, None]
        new = (self.positions > since) & (earlier <= since) & ~self.idle(*images).gather(1, drawn)
        self.waiting.index_copy_(0, rows, self.wait(new))
        self.since.index_copy_(0, rows, at)

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        if self.windows is not None:
            self.drawn, self.earlier, self.waiting = select(rows, self.drawn, self.earlier, self.waiting)
            self.since, self.asked = select(rows, self.since, self.asked)


class Masses(Proposals):
    """Under l2 and l1: one window gives up its perturbation, and another gets it, and what the radius still allows."""

    NUMBERS = 5

    def __init__(self, x: Tensor, threat: Threat, rng: Randomness, share: Callable[[int], float], queries: int) -> None:
        super().__init__(x, threat, rng, share, queries)
        self.squared_radius = x.new_tensor(threat.eps**2)
        # Rounding moves values of the box by at most ROUNDING each, perhaps all of them away from x.
        self.reach = max(threat.eps - ROUNDING * math.sqrt(x[0].numel()), 0.0)

    def start(self) -> Tensor:
        """The image tiled with patterns of a fifth of its height, a sign for each channel and tile."""
        x, norm, rng = self.x, self.threat.norm, self.rng.child("start")
        _, channels, height, width = x.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        sign = rng.sign(self.left, (channels, rows, columns)).repeat_interleave(side, 2).repeat_interleave(side, 3)
        turned = rng.child("turn").sign(self.left, (1, rows, columns)).repeat_interleave(side, 2).repeat_interleave(side, 3) > 0
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
        """Places in a flat image of the window that gains and of the one that gives, and the pattern that is added."""
        norm = self.threat.norm
        gains, gives = (self._places(draws[..., i], draws[..., i + 1], window) for i in (0, 2))
        plain, tilted = (p.to(self.x) for p in (pattern(*window, _power(norm)), pattern(*window[::-1], _power(norm)).T))
        hill = torch.where(draws[..., 4, None] < 0.5, tilted.flatten(), plain.flatten())
        signs = torch.where(draws[..., 5:] < 0.5, -1.0, 1.0)
        return gains, gives, signs[..., None] * hill[:, :, None]

    def _places(self, down: Tensor, right: Tensor, window: tuple[int, int]) -> Tensor:
        """(k, n, C, places) int64; down, right: (k, n) uniform in [0, 1)."""
        channels, height, width = self.x.shape[1:]
        inside = torch.arange(window[0])[:, None] * width + torch.arange(window[1])
        corner = _corner(down, height, window[0]) * width + _corner(right, width, window[1])
        return (corner[..., None] + inside.flatten().to(corner))[:, :, None].expand(-1, -1, channels, -1)

    def move(self, current: Tensor, *prepared: Tensor) -> Tensor:
        gains, gives, hills = prepared
        x, norm, eps, channels = self.x, self.threat.norm, self.threat.eps, self.x.shape[1]
        delta = (current - x).flatten(2)
        spent, old = length(delta, norm), delta.gather(2, gains)
        size = _per_channel(old, norm)
        new = torch.addcdiv(hills, old, size + TINY)
        nothing = torch.zeros_like(hills)  # the number 0 takes twice as long to scatter
        delta.scatter_(2, gains, nothing)
        given = _per_channel(delta.gather(2, gives), norm)  # where the windows overlap, it counts once
        if norm == "l2":
            unspent = torch.addcmul(self.squared_radius, spent, spent, value=-1).clamp_min_(0)
            mass = torch.addcmul(size.square(), given, given).add_(unspent, alpha=1 / channels).sqrt_()
        else:
            mass = (eps - spent).clamp_min(0) + (size + given) * channels
        new *= mass / (_per_channel(new, norm) + TINY)
        delta.scatter_(2, gives, nothing).scatter_(2, gains, new)
        if norm == "l1":
            return self.threat.project(x, x + delta.view_as(x))
        total = torch.linalg.vector_norm(delta, dim=(1, 2), dtype=torch.float64).clamp_min_(TINY)
        return torch.addcmul(x, delta.view_as(x), per_image((self.reach / total).to(x.dtype), x)).clamp_(0, 1)


def window_size(share: float, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a window that covers about this share of the image: a square, where one fits."""
    side = max(round(math.sqrt(share * height * width)), 1)
    if side <= min(height, width):
        return side, side
    if height <= width:
        return height, min(width, max(1, round(share * width)))
    return min(height, max(1, round(share * height))), width


def _windows(size: tuple[int, int], height: int, width: int) -> Tensor:
    """(places, height, width) bool: a window of this size at all places, row by row."""
    rows, columns = (_taken(torch.arange(n - side + 1), n, side) for n, side in zip((height, width), size, strict=True))
    return (rows[:, None, :, None] & columns[:, None, :]).flatten(0, 1)


def _earlier(drawn: Tensor) -> Tensor:
    """(n, k) int16: where the same number stands last before each of (n, k); -1 where nowhere."""
    ordered, order = drawn.sort(dim=1, stable=True)
    before = torch.where(ordered[:, 1:] == ordered[:, :-1], order[:, :-1], -1)
    return torch.full_like(drawn, -1).scatter_(1, order[:, 1:], before).to(torch.int16)


def _corner(draws: Tensor, size: int, side: int) -> Tensor:
    """The first row of a window of so many rows, uniform over all that fit; draws: uniform in [0, 1)."""
    return (draws * (size - side + 1)).long()


def _taken(first: Tensor, size: int, side: int) -> Tensor:
    """(..., size) bool: the rows that a window takes whose first row is one of (...)."""
    below = torch.arange(size, device=first.device) - first[..., None]
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

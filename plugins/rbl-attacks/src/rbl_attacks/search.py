"""Penalty methods: what they share, and the search for how much being adversarial weighs against being near."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.best import Best
from rbl_attacks.geometry import per_image
from robustbench_lite import BudgetExceeded, Randomness, Target, Threat

# In a search of at least this many rounds, the last repeats the smallest constant that has worked.
LONG = 10
LARGEST = 1e10
# A run ends where a tenth of its steps did not bring the objective below this share of what it was.
PROGRESS = 0.9999
# On a stochastic defense so many steps are taken together, and have the confidence where their leads do by so many standard
# errors: of all the points just before a boundary, some are beyond it by chance.
TOGETHER, SURE = 10, 3


@dataclass(frozen=True, kw_only=True)
class PenaltyMethod(ABC):
    """Runs from the clean image that minimise constant * max(0, confidence - lead of a wrong class) + squared distance."""

    steps: Annotated[int, Field(ge=1)] = 10_000
    search_steps: Annotated[int, Field(ge=1)] = 9
    lr: Annotated[float, Field(gt=0)] = 0.01
    constant: Annotated[float, Field(gt=0)] = 1e-3
    confidence: Annotated[float, Field(ge=0)] = 0.0
    abort_early: bool = True

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        best = Smallest(x, self.confidence, target.stochastic)
        seen = target if self._wants_the_nearest() else target.forgetful()
        search = ConstantSearch(x, first=self.constant, rounds=self.search_steps)
        for constant in search:
            best.begin()
            for rows in target.evenly_spent(torch.arange(len(x), device=x.device)):
                penalty = Penalty(constant[rows], self.confidence, self._every(), average=target.stochastic)
                with suppress(BudgetExceeded):
                    self._descend(seen, rows, x[rows], y[rows], penalty, best)
            search.learn(best.found)
        return best.points

    def _every(self) -> int:
        return math.ceil(self.steps / 10) if self.abort_early else 0

    def _wants_the_nearest(self) -> bool:
        """Whether any adversarial point is as good as its distance in the threat's norm says: then the target may keep them."""
        return self.confidence == 0

    @abstractmethod
    def _descend(self, target: Target, rows: Tensor, x: Tensor, y: Tensor, penalty: Penalty, best: Smallest) -> None:
        """One run on the n examples ``rows`` (n,), x (n, ...). ``best`` is told of the points that have the confidence."""


class Smallest(Best):
    """The smallest point of each example of x (N, ...) that has the confidence.

    found: (N,) bool, whether this round found one. stochastic: whether leads are random, so that a single one says little:
    then steps are taken together, and of these the largest point stands for all.
    """

    def __init__(self, x: Tensor, confidence: float, stochastic: bool) -> None:
        super().__init__(x)
        self.confidence, self.stochastic = confidence, stochastic
        self.begin()

    def begin(self) -> None:
        """The next round."""
        self.found = torch.zeros(len(self.points), dtype=torch.bool, device=self.points.device)
        self._stretch = _Stretch(self.points) if self.stochastic else None

    def see(self, rows: Tensor, points: Tensor, lead: Tensor, size: Tensor) -> None:
        """A step of the examples ``rows`` (n,): points (n, ...), by how much a wrong class leads there (n,), and sizes (n,)."""
        good = lead > self.confidence
        if self._stretch is not None:
            points, size, good = self._stretch.add(rows, points, lead, size, self.confidence)
        rows = rows[good]
        self.found.index_fill_(0, rows, True)
        self.keep(rows, points[good], -size[good])


class _Stretch:
    """Some steps of each example of x (N, ...) taken together: their leads, and the largest point."""

    def __init__(self, x: Tensor) -> None:
        self.leads, self.count = x.new_zeros((len(x), TOGETHER)), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.largest, self.size = x.clone(), x.new_full((len(x),), -math.inf)

    def add(self, rows: Tensor, points: Tensor, lead: Tensor, size: Tensor, wanted: float) -> tuple[Tensor, Tensor, Tensor]:
        """The largest points (n, ...), their sizes (n,), and where they complete a stretch that leads by more than wanted."""
        place = self.count[rows] % TOGETHER
        self.leads[rows, place] = lead
        self.count[rows] += 1
        larger = (place == 0) | (size > self.size[rows])
        self.largest[rows[larger]], self.size[rows[larger]] = points[larger], size[larger]
        leads = self.leads[rows]
        sure = leads.mean(1) - wanted > SURE / math.sqrt(TOGETHER) * leads.std(1)
        return self.largest[rows], self.size[rows], sure & (place == TOGETHER - 1)


class Penalty:
    """constant * max(0, confidence - lead) + squared distance, of the examples that are left in a run.

    constant: (n,). every: after how many steps to look who still makes progress; 0 for never. average: whether to look at the
    mean of those steps, where a single lead is random.
    """

    def __init__(self, constant: Tensor, confidence: float, every: int, *, average: bool) -> None:
        self.constant, self.confidence, self.every, self.average = constant, confidence, every, average
        self.before = torch.full_like(constant, math.inf)  # the value at the last look
        self.since = torch.zeros_like(constant)  # the sum of the values since then

    def going(self, number: int, lead: Tensor, delta: Tensor) -> Tensor | None:
        """(n,) bool: who goes on after step ``number``, given leads (n,) and perturbations (n, ...); None where all do."""
        if not self.every or (number % self.every and not self.average):
            return None
        value = self.constant * (self.confidence - lead).clamp_min(0) + squares(delta)
        if self.average:
            self.since += value
            if number % self.every:
                return None
            value, self.since = self.since / (self.every if number else 1), torch.zeros_like(value)
        going = value <= PROGRESS * self.before
        self.before = value
        if bool(going.all()):
            return None
        self.keep(going)
        return going

    def keep(self, going: Tensor) -> None:
        """Forget all examples but these, (n,) bool."""
        self.constant, self.before, self.since = self.constant[going], self.before[going], self.since[going]

    def slope(self, lead: Tensor, uphill: Tensor, delta: Tensor) -> Tensor:
        """The gradient (n, ...), given leads (n,), their gradients and the perturbations (n, ...)."""
        pull = torch.where(lead < self.confidence, self.constant, 0)
        return 2 * delta - per_image(pull, uphill) * uphill.nan_to_num(0, 0, 0)


def squares(delta: Tensor) -> Tensor:
    """(n,) squared lengths."""
    return delta.square().flatten(1).sum(1)


class ConstantSearch:
    """The constant of each example over some rounds: tenfold until a round finds a point, halving the interval from then on.

    ``for constant in search:`` gives (N,) the constants of each round; ``search.learn(found)`` (N,) bool ends the round.
    like: anything (N, ...), for its length, type and device. first: the constant of the first round. rounds: how many.
    """

    def __init__(self, like: Tensor, *, first: float, rounds: int) -> None:
        self.constant = like.new_full((len(like),), first)
        self.low = torch.zeros_like(self.constant)
        self.high = torch.full_like(self.constant, math.inf)
        self.rounds = rounds

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self.rounds):
            if number + 1 == self.rounds >= LONG:
                self.constant = self.high.clamp_max(LARGEST)
            yield self.constant

    def learn(self, found: Tensor) -> None:
        """A constant at which a point was found (N,) is large enough, any other too small."""
        self.high = torch.where(found, torch.minimum(self.high, self.constant), self.high)
        self.low = torch.where(found, self.low, torch.maximum(self.low, self.constant))
        self.constant = torch.where(self.high.isfinite(), (self.low + self.high) / 2, 10 * self.constant)

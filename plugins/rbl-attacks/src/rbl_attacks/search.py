"""Penalty methods: what they share, and the search for how much being adversarial weighs against being near."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.best import Best
from rbl_attacks.geometry import per_image
from robustbench_lite import Randomness, Target, Threat

# In a search of at least this many rounds, the last repeats the smallest constant that has worked.
LONG = 10
LARGEST = 1e10
# A run ends where a tenth of its steps did not bring the objective below this share of what it was.
PROGRESS = 0.9999


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
        best, seen = Best(x), target if self._wants_the_nearest() else target.forgetful()
        search = ConstantSearch(x, first=self.constant, rounds=self.search_steps)
        for constant in search:
            search.learn(self._descend(seen, x, y, constant, best))
        return best.points

    def _wants_the_nearest(self) -> bool:
        """Whether any adversarial point is as good as its distance in the threat's norm says: then the target may keep them."""
        return self.confidence == 0

    @abstractmethod
    def _descend(self, target: Target, x: Tensor, y: Tensor, constant: Tensor, best: Best) -> Tensor:
        """One run. ``best`` keeps the smallest points; returns (N,) whether one with the confidence was found."""


class Penalty:
    """constant * max(0, confidence - lead) + squared distance, of the examples that are left in a run.

    constant: (n,). every: after how many steps to look who still makes progress; 0 for never.
    """

    def __init__(self, constant: Tensor, confidence: float, every: int) -> None:
        self.constant, self.confidence, self.every = constant, confidence, every
        self.before = torch.full_like(constant, math.inf)  # the value at the last look

    def going(self, number: int, lead: Tensor, delta: Tensor) -> Tensor | None:
        """(n,) bool: who goes on after step ``number``, given leads (n,) and perturbations (n, ...); None where all do."""
        if not self.every or number % self.every:
            return None
        value = self.constant * (self.confidence - lead).clamp_min(0) + squares(delta)
        going = value <= PROGRESS * self.before
        self.before = value
        if bool(going.all()):
            return None
        self.keep(going)
        return going

    def keep(self, going: Tensor) -> None:
        """Forget all examples but these, (n,) bool."""
        self.constant, self.before = self.constant[going], self.before[going]

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

"""The search over the constant of a penalty method: how much being adversarial weighs against being near."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# In a search of at least this many rounds, the last repeats the smallest constant that has worked.
LONG = 10
LARGEST = 1e10


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

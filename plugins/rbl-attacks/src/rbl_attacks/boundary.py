"""The boundary attack (Brendel et al., 2018, arXiv:1712.04248), in l2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.decision import DecisionAttack, adversarial, continues
from rbl_attacks.geometry import PORTION, TINY, length, per_image
from robustbench_lite import Randomness, Target, Threat

EVERY = 10  # steps between two looks at how often proposals succeed


@dataclass(frozen=True, kw_only=True)
class Boundary(DecisionAttack):
    """A random walk along the boundary: a step on the sphere around the clean image, then a step towards it.

    steps: proposals, a query each; every tenth asks for the point on the sphere, too. spherical_step, source_step: the first
    lengths of the two, as shares of the distance. adaptation: factor by which they grow and shrink. convergence: an example
    ends at a source step below this. tries: see DecisionAttack.

    Both steps grow where more than half of the last 100 points looked at on the sphere were adversarial, and shrink below a
    fifth; the source step also where more than a quarter, or less than a tenth, of the last 30 whole proposals were.
    """

    steps: Annotated[int, Field(ge=1)] = 25_000
    spherical_step: Annotated[float, Field(gt=0)] = 0.01
    source_step: Annotated[float, Field(gt=0)] = 0.01
    adaptation: Annotated[float, Field(gt=1)] = 1.5
    convergence: Annotated[float, Field(ge=0)] = 1e-7

    def passes(self, num_classes: int) -> int:
        """Forward passes per example that does not converge, with a start at the first try."""
        return self.starting_passes + self.steps + self.steps // EVERY

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        start, found = self.starts(target, x, y, rng.child("start"))
        rows = found.nonzero()[:, 0]
        clean, label, point = x[rows], y[rows], start[rows]
        noise = NoiseAhead(rng.child("step"), rows, x.shape[1:], range(1, self.steps + 1))
        spherical = x.new_full((len(rows),), self.spherical_step)
        source = x.new_full((len(rows),), self.source_step)
        on_sphere, whole = Recent(rows, 100), Recent(rows, 30)
        for number in range(1, self.steps + 1):
            look = number % EVERY == 0
            alive = (source >= self.convergence) & continues(target, threat, rows, 1 + look)
            if not bool(alive.all()):
                rows, clean, label, point, spherical, source = (
                    part[alive] for part in (rows, clean, label, point, spherical, source)
                )
                on_sphere, whole = on_sphere.select(alive), whole.select(alive)
                noise.keep(alive)
            if not len(rows):
                break
            distance = length(point - clean, "l2")
            aside, candidate = propose(clean, point, distance, noise.next(), per_image(spherical, x), per_image(source, x))
            won = adversarial(target, candidate, label, rows)
            nearer = won & (length(candidate - clean, "l2") < distance).flatten()
            point = torch.where(per_image(nearer, x), candidate, point)
            if look:
                on_sphere.add(adversarial(target, aside, label, rows))
                whole.add(won)
                factor = self._factor(on_sphere, 0.2, 0.5)
                spherical, source = spherical * factor, source * factor * self._factor(whole, 0.1, 0.25)
        return target.best(x)

    def _factor(self, recent: Recent, least: float, most: float) -> Tensor:
        """(n,) by how much to change a step: up where more than ``most`` succeeded, down below ``least``; then count anew."""
        rate = recent.rate()
        up, down = rate > most, rate < least
        recent.forget(up | down)
        return torch.where(up, self.adaptation, torch.where(down, 1 / self.adaptation, 1.0))


class NoiseAhead:
    """Normal numbers (n, *shape) of one draw after the other, made for many draws at once: for few, all is overhead.

    rows: (n,) the examples of ``rng`` that they are for.
    """

    AHEAD = 64

    def __init__(self, rng: Randomness, rows: Tensor, shape: Sequence[int], draws: range) -> None:
        self.rng, self.rows, self.shape, self.draws = rng, rows, shape, draws
        self.block: list[Tensor] = []

    def next(self) -> Tensor:
        """The next draw's."""
        if not self.block:
            count = min(self.AHEAD, max(1, PORTION // max(1, len(self.rows) * math.prod(self.shape))))
            now, self.draws = self.draws[:count], self.draws[count:]
            draw = torch.tensor(now, device=self.rows.device).repeat_interleave(len(self.rows))
            made = self.rng.normal(self.rows.repeat(len(now)), self.shape, draw=draw)
            self.block = list(made.view(len(now), len(self.rows), *self.shape).unbind())[::-1]
        return self.block.pop()

    def keep(self, alive: Tensor) -> None:
        """Go on with some of the examples, (n,) bool."""
        self.rows, self.block = self.rows[alive], [noise[alive] for noise in self.block]


class Recent:
    """Of each example in ``rows`` (n,), whether its last ``size`` proposals were adversarial."""

    def __init__(self, rows: Tensor, size: int) -> None:
        self.won = torch.zeros((len(rows), size), dtype=torch.bool, device=rows.device)
        self.known = torch.zeros_like(rows)
        self.next = 0

    def add(self, won: Tensor) -> None:
        """Note one more proposal (n,) of each."""
        self.won[:, self.next] = won
        self.known += 1
        self.next = (self.next + 1) % self.won.shape[1]

    def rate(self) -> Tensor:
        """(n,) share of adversarial ones; NaN until there are enough."""
        return torch.where(self.known >= self.won.shape[1], self.won.float().mean(1), math.nan)

    def forget(self, rows: Tensor) -> None:
        """Start anew for these (n,) bool."""
        self.known[rows] = 0

    def select(self, rows: Tensor) -> Recent:
        """The same for some of the examples, (n,) bool."""
        chosen = Recent(self.known[rows], self.won.shape[1])
        chosen.won, chosen.known, chosen.next = self.won[rows], self.known[rows], self.next
        return chosen


def propose(
    clean: Tensor, point: Tensor, distance: Tensor, noise: Tensor, spherical: Tensor, source: Tensor
) -> tuple[Tensor, Tensor]:
    """A point on the sphere around ``clean`` through ``point``, and the proposal a step nearer; both clipped to the box.

    All (n, ...) or broadcastable to it. The part of the noise across the way to ``point`` is brought to ``spherical`` times the
    distance; clipping moves the first point off the sphere, which the step towards ``clean`` makes up for.
    """
    away = point - clean
    unit = away / distance.clamp_min(TINY)
    across = noise - per_image((noise * unit).flatten(1).sum(1), noise) * unit
    across = across * (spherical * distance / length(across, "l2").clamp_min(TINY))
    aside = (clean + (away + across) / (1 + spherical.square()).sqrt()).clamp(0, 1)
    reached = length(aside - clean, "l2")
    share = ((source - 1) * distance + reached).clamp_min(0) / reached.clamp_min(TINY)
    return aside, (aside + share * (clean - aside)).clamp(0, 1)

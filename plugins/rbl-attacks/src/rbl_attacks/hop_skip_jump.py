"""HopSkipJump (Chen et al., 2020, arXiv:1904.02144), in l2 and linf."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.decision import FINEST, DecisionAttack, adversarial, continues, to_boundary
from rbl_attacks.geometry import TINY, direction, length, on_sphere, portions
from robustbench_lite import Randomness, Target, Threat

SHORTEST = 100  # halvings of a step before an iteration goes without


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(DecisionAttack):
    """Estimates the boundary's normal from decisions around a point on it, steps along it, and bisects back to the boundary.

    steps: iterations. samples: queries for the first normal; iteration j takes sqrt(j) times as many, ``max_samples`` at most.
    gamma: scale of the bisection's tolerance, gamma / d^1.5 of the way under l2 and gamma / d^2 under linf for d values.
    tries: see DecisionAttack.

    Every example is probed in directions of its own. Where no step is adversarial however short (the reference goes on for
    ever), the example stays where it is for an iteration.
    """

    steps: Annotated[int, Field(ge=1)] = 40
    samples: Annotated[int, Field(ge=2)] = 100
    max_samples: Annotated[int, Field(ge=2)] = 10_000
    gamma: Annotated[float, Field(gt=0)] = 1.0

    def passes(self, num_classes: int) -> int:
        """Forward passes per example with a start at the first try, if steps are halved once and bisections are the longest."""
        probes = sum(self.probes(number) for number in range(1, self.steps + 1))
        return self.starting_passes + FINEST + probes + self.steps * (2 + FINEST)

    def probes(self, number: int) -> int:
        """Queries for the normal in iteration ``number``, from 1."""
        return min(int(self.samples * math.sqrt(number)), self.max_samples)

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        norm, size = threat.norm, math.prod(x.shape[1:])
        halvings = min(max(math.ceil((1.5 if norm == "l2" else 2) * math.log2(size) - math.log2(self.gamma)), 1), FINEST)
        ahead, found = self.starts(target, x, y, rng.child("start"))
        rows = found.nonzero()[:, 0]
        clean, label, ahead = x[rows], y[rows], ahead[rows]
        point = to_boundary(target, clean, label, ahead, rows, norm, halvings)
        for number in range(1, self.steps + 1):
            count = self.probes(number)
            alive = continues(target, threat, rows, count)
            rows, clean, label, point, ahead = (part[alive] for part in (rows, clean, label, point, ahead))
            if not len(rows):
                break
            reach = torch.full_like(length(point, norm), 0.1)
            if number > 1:
                reach = self.gamma / size * length(ahead - clean, norm)
            across = normal(target, point, label, rows, reach, count, norm, rng.child("normal", number))
            way = across.sign() if norm == "linf" else across
            longest = length(point - clean, norm) / math.sqrt(number)
            ahead = step(target, point, label, rows, longest * way)
            point = to_boundary(target, clean, label, ahead, rows, norm, halvings)
        return target.best(x)


def normal(
    target: Target, point: Tensor, y: Tensor, rows: Tensor, reach: Tensor, count: int, norm: str, rng: Randomness
) -> Tensor:
    """(n, ...) unit vectors towards the adversarial side of the boundary at ``point`` (n, ...), from ``count`` decisions each.

    Probes at distance ``reach`` (n, 1, ...), clipped to the box, vote for their directions: (answer - mean answer) * direction,
    added up, where answers are +-1; without the mean where all are alike. Directions are gaussian, under linf uniform in
    [-1, 1], at length 1. ``rng`` is of all examples, the others of the examples ``rows``.
    """
    n, shape, size = len(point), point.shape[1:], math.prod(point.shape[1:])
    votes, plain = point.new_zeros((n, size), dtype=torch.float64), point.new_zeros((n, size), dtype=torch.float64)
    balance = point.new_zeros(n, dtype=torch.float64)
    reach, example = reach.clamp_min(TINY), torch.arange(n, device=point.device)
    for part, numbers in portions(n, size, count):
        chosen = example[part]
        owner = chosen.repeat_interleave(len(numbers))
        number = torch.arange(numbers.start, numbers.stop, device=owner.device).repeat(len(chosen))
        draw = rng.uniform(rows[owner], shape, draw=number, low=-1, high=1) if norm == "linf" else None
        noise = rng.normal(rows[owner], shape, draw=number) if draw is None else draw
        probe = (point[owner] + reach[owner] * on_sphere(noise, "l2", 1.0)).clamp_(0, 1)
        label = y[owner]
        answer = target.labels(probe, rows[owner])
        vote = torch.where((answer != label) & (answer < target.num_classes), 1.0, -1.0).double().view(len(chosen), -1)
        way = ((probe - point[owner]) / reach[owner]).double().view(len(chosen), -1, size)
        votes[part] += (vote[..., None] * way).sum(1)
        plain[part] += way.sum(1)
        balance[part] += vote.sum(1)
    mean = balance / count
    return direction((votes - torch.where(mean.abs() < 1, mean, 0)[:, None] * plain).view_as(point).to(point.dtype))


def step(target: Target, point: Tensor, y: Tensor, rows: Tensor, move: Tensor) -> Tensor:
    """``point`` plus ``move`` (n, ...), halved until it is adversarial: at worst ``point``, which is."""
    reached, left = point.clone(), torch.arange(len(point), device=point.device)
    for _ in range(SHORTEST):
        ahead = (point[left] + move[left]).clamp_(0, 1)
        changed = (ahead != point[left]).flatten(1).any(1)
        left, ahead = left[changed], ahead[changed]
        if not len(left):
            break
        won = adversarial(target, ahead, y[left], rows[left])
        reached[left[won]] = ahead[won]
        left = left[~won]
        move = move / 2
    return reached

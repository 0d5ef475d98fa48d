"""What attacks that see only the answered class share: where they start, and the way back to the boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.geometry import length, per_image
from rbl_attacks.margins import unfinished
from robustbench_lite import Randomness, Target, Threat

BLENDINGS = 10  # bisections of a first blend, as HopSkipJump: to a thousandth of the way
FINEST = 24  # further bisections change no float32 image


@dataclass(frozen=True, kw_only=True)
class DecisionAttack:
    """Starts at a random image that is classified otherwise, blended with the clean one as far as it stays adversarial.

    tries: random images for each example before it is given up. The first is uniform noise, as in the references; others in
    turn are noise of ever larger cells, since a defense tends to answer one and the same class on all noise of one kind.
    """

    tries: Annotated[int, Field(ge=1)] = 1000

    @property
    def starting_passes(self) -> int:
        """Forward passes for a start that is found at once."""
        return 1 + BLENDINGS

    def starts(self, target: Target, x: Tensor, y: Tensor, rng: Randomness) -> tuple[Tensor, Tensor]:
        """(N, ...) an adversarial point of each example, and (N,) bool: whether there is one. Override to start elsewhere."""
        start, found = random_images(target, x, y, rng, self.tries)
        rows = found.nonzero()[:, 0]
        start[rows] = to_boundary(target, x[rows], y[rows], start[rows], rows, "l2", BLENDINGS)
        return start, found


def adversarial(target: Target, points: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """(n,) bool: a wrong class is answered. No refusal is, nor an example out of queries: it is not asked.

    points (n, ...) and y (n,) belong to the examples ``rows`` (n,), each of which stands there once.
    """
    asked = affords(target, rows)
    if bool(asked.all()):
        answer = target.labels(points, rows)
    else:
        answer = y.clone()
        if bool(asked.any()):
            answer[asked] = target.labels(points[asked], rows[asked])
    return (answer != y) & (answer < target.num_classes)


def affords(target: Target, rows: Tensor, queries: int = 1) -> Tensor:
    """(n,) bool: which of these examples have so many queries left under the protocol's budget."""
    if target.budget is None:
        return torch.ones_like(rows, dtype=torch.bool)
    return target.queries[rows] + queries <= target.budget


def continues(target: Target, threat: Threat, rows: Tensor, queries: int) -> Tensor:
    """(n,) bool: which of these examples are to be improved, and afford so many queries for it."""
    return unfinished(target, threat)[rows] & affords(target, rows, queries)


def random_images(target: Target, x: Tensor, y: Tensor, rng: Randomness, tries: int) -> tuple[Tensor, Tensor]:
    """(N, ...) random adversarial images, of each example its own, and (N,) bool: whether one was found."""
    start, found = x.clone(), torch.zeros_like(y, dtype=torch.bool)
    channels, height, width = x.shape[1:]
    scales = max(height, width).bit_length()
    left = torch.arange(len(x), device=x.device)
    for number in range(tries):
        left = left[~found[left] & affords(target, left)]
        if not len(left):
            break
        cell = 2 ** (number % scales)
        noise = rng.uniform(left, (channels, -(-height // cell), -(-width // cell)), draw=number)
        image = noise.repeat_interleave(cell, 2).repeat_interleave(cell, 3)[:, :, :height, :width].to(x)
        found[left] = adversarial(target, image, y[left], left)
        start[left] = torch.where(per_image(found[left], x), image, start[left])
    return start, found


def to_boundary(target: Target, x: Tensor, y: Tensor, far: Tensor, rows: Tensor, norm: str, halvings: int) -> Tensor:
    """The last adversarial point on the way from each adversarial ``far`` (n, ...) to its clean image ``x``, by bisection.

    Under l2 the way is the segment between them; under linf every value moves no further than a shrinking radius.
    """
    low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
    radius = length(far - x, "linf")

    def at(share: Tensor) -> Tensor:
        part = per_image(share, x)
        nearer = torch.clamp(far, x - part * radius, x + part * radius) if norm == "linf" else x + part * (far - x)
        return torch.where(part < 1, nearer, far).clamp_(0, 1)

    for _ in range(halvings if len(x) else 0):
        middle = (low + high) / 2
        beaten = adversarial(target, at(middle), y, rows)
        low, high = torch.where(beaten, low, middle), torch.where(beaten, middle, high)
    return at(high)

"""The steps of gradient attacks: in which direction, how long, and when to go back. No model and no image is needed here."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from rbl_attacks.geometry import TINY, direction, length, on_sphere, per_image

# Lengths of gradients whose squares float32 holds well enough: others are scaled first.
ORDINARY = (1e-15, 1e15)


class Schedule(Protocol):
    """A rule for n examples. momentum: weight of the new step against the last one; 0 for none. settles: steps shrink, so that
    points come to rest, and are not asked about again.
    """

    momentum: float
    settles: bool

    def begin(self, loss: Tensor) -> None:
        """Told of the losses (n,) at the start points."""

    def move(self, gradient: Tensor, points: Tensor) -> Tensor:
        """The step (n, ...) that is added to ``points`` (n, ...) before projection."""

    def observe(self, loss: Tensor, best_loss: Tensor, best: Tensor, x: Tensor) -> Tensor | None:
        """Told of a step's losses (n,), of the best so far with its points (n, ...), and of the clean images.

        Returns (n,) bool, which examples go back to their best point, or None where none does.
        """

    def keep(self, rows: Tensor) -> None:
        """Forget all examples but these, positions (k,)."""


def steepest(gradient: Tensor, points: Tensor, norm: str, count: int | Tensor = 1) -> Tensor:
    """Steepest ascent of length 1 in the norm, from points (n, ...) of the box.

    Under l1 it is spread evenly over the ``count`` largest derivatives, one number for all or (n,), among those that the box
    does not block.
    """
    if norm == "linf":
        return gradient.sign()
    if norm == "l2":
        return _unit(gradient)
    blocked = ((gradient > 0) & (points >= 1)) | ((gradient < 0) & (points <= 0))
    size = torch.where(blocked, 0, gradient.abs()).flatten(1)
    if isinstance(count, Tensor):
        least = size.topk(int(count.max()), dim=1).values.gather(1, count[:, None] - 1)
    else:
        least = size.topk(count, dim=1).values[:, -1:]
    chosen = (size >= least).view_as(gradient) & ~blocked
    return on_sphere(torch.where(chosen, gradient, 0).sign(), "l1", 1.0)


def _unit(gradient: Tensor) -> Tensor:
    """Gradients (n, ...) at Euclidean length 1, however small; 0 in place of what is not finite, and where all is 0."""
    size = length(gradient, "l2")
    unit = gradient * (1 / size)
    low, high = size.aminmax() if len(size) else ORDINARY
    if not (float(low) > ORDINARY[0] and float(high) < ORDINARY[1]):  # NaN is neither
        odd = (~((size > ORDINARY[0]) & (size < ORDINARY[1]))).flatten().nonzero()[:, 0]
        unit.index_copy_(0, odd, direction(gradient.index_select(0, odd).nan_to_num_(0, 0, 0)))
    return unit


class Fixed:
    """Steps of one length. sparsity: the share of values that a step under l1 leaves alone."""

    momentum, settles = 0.0, False

    def __init__(self, size: float, norm: str, *, sparsity: float = 0.0) -> None:
        self.size, self.norm, self.sparsity = size, norm, sparsity

    def begin(self, loss: Tensor) -> None:
        return

    def move(self, gradient: Tensor, points: Tensor) -> Tensor:
        count = max(1, round((1 - self.sparsity) * gradient[0].numel()))
        return steepest(gradient, points, self.norm, count) * self.size

    def observe(self, loss: Tensor, best_loss: Tensor, best: Tensor, x: Tensor) -> Tensor | None:
        return None

    def keep(self, rows: Tensor) -> None:
        return


class Accumulated(Fixed):
    """Steps of one length along the sum of all gradients so far, each at l1 length 1, that decays by a factor per step."""

    def __init__(self, size: float, norm: str, *, decay: float) -> None:
        super().__init__(size, norm)
        self.decay = decay
        self.total: Tensor | None = None

    def move(self, gradient: Tensor, points: Tensor) -> Tensor:
        if self.decay:
            gradient = gradient.nan_to_num(0, 0, 0)
            size = gradient.abs().flatten(1).sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
            gradient = gradient / per_image(size, gradient)
            if self.total is not None:
                gradient = self.decay * self.total + gradient
            self.total = gradient
        return super().move(gradient, points)

    def keep(self, rows: Tensor) -> None:
        if self.total is not None:
            self.total = self.total.index_select(0, rows)


class Euclidean:
    """Auto-PGD under linf and l2: halve the step where the loss stopped rising (arXiv:2003.01690, section 3).

    Checkpoints come after 0.22 N steps, then after periods that shrink by 0.03 N down to 0.06 N. At each, the step is halved
    and the search goes back to its best point where at most ``rho`` of the period's steps raised the loss, or where the
    best loss has not changed since a checkpoint at which the step was kept.

    steps: N.
    """

    momentum, settles = 0.75, True

    def __init__(self, steps: int, eps: float, *, norm: str, rho: float) -> None:
        self.eps, self.norm, self.rho = eps, norm, rho
        self.period = max(int(0.22 * steps), 1)
        self.shortest = max(int(0.06 * steps), 1)
        self.shrink = max(int(0.03 * steps), 1)
        self.since = 0

    def begin(self, loss: Tensor) -> None:
        self.size = torch.full_like(loss, 2 * self.eps)
        self.last_loss = self.checkpoint_loss = loss
        self.rises = torch.zeros_like(loss)
        self.halved = torch.ones_like(loss, dtype=torch.bool)  # so that the first checkpoint cannot miss progress

    def move(self, gradient: Tensor, points: Tensor) -> Tensor:
        """Along the gradient's sign (linf) or the gradient (l2), as long as the step size says."""
        return per_image(self.size, gradient) * steepest(gradient, points, self.norm)

    def observe(self, loss: Tensor, best_loss: Tensor, best: Tensor, x: Tensor) -> Tensor | None:
        self.rises += loss > self.last_loss
        self.last_loss = loss
        self.since += 1
        if self.since < self.period:
            return None
        oscillating = self.rises <= self.rho * self.period
        stuck = ~self.halved & (self.checkpoint_loss >= best_loss)
        self.halved = oscillating | stuck
        self.checkpoint_loss = best_loss
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.period = max(self.period - self.shrink, self.shortest)
        self.since, self.rises = 0, torch.zeros_like(self.rises)
        return self.halved

    def keep(self, rows: Tensor) -> None:
        for name in ("size", "last_loss", "rises", "checkpoint_loss", "halved"):
            setattr(self, name, getattr(self, name).index_select(0, rows))


class Sparse:
    """Auto-PGD under l1: steps on few values, as few as the best point suggests (arXiv:2103.01208, algorithm 1).

    A step moves the values with the largest derivatives, by equal amounts. Every 0.04 N steps, the share of values that move
    becomes 1/1.5 of the share that the best perturbation changes; where that has become less than 0.95 of what it was, the
    step is reset to eps and the search goes back to its best point, and elsewhere it shrinks by 1.5, down to eps / 10.

    start: perturbation (n, ...) of the start point. given: it says how sparse to begin; otherwise a fifth of the values move.
    """

    momentum, settles = 0.0, True
    SHARE, SHRINK, LEAST, SPARSER = 0.2, 1.5, 10, 0.95

    def __init__(self, steps: int, eps: float, start: Tensor, *, given: bool) -> None:
        self.eps = eps
        self.values = math.prod(start.shape[1:])
        self.period = max(int(0.04 * steps), 1)
        self.since = 0
        changed = _changed(start)
        self.changed = changed if given else torch.full_like(changed, self.values)
        self.share = changed / self.values / self.SHRINK if given else torch.full_like(changed, self.SHARE)
        self.size = torch.full_like(changed, eps)

    def begin(self, loss: Tensor) -> None:
        return

    def move(self, gradient: Tensor, points: Tensor) -> Tensor:
        magnitude = gradient.abs().flatten(1)
        place = ((1 - self.share) * self.values).clamp(0, self.values - 1).long()
        least = magnitude.sort(1).values.gather(1, place[:, None])
        chosen = torch.where(magnitude >= least, gradient.flatten(1).sign(), 0)
        unit = chosen / chosen.abs().sum(1, keepdim=True).clamp_min(TINY)
        return per_image(self.size, gradient) * unit.view_as(gradient)

    def observe(self, loss: Tensor, best_loss: Tensor, best: Tensor, x: Tensor) -> Tensor | None:
        self.since += 1
        if self.since < self.period:
            return None
        self.since = 0
        changed = _changed(best - x)
        sparser = changed < self.SPARSER * self.changed
        self.share = changed / self.values / self.SHRINK
        self.size = torch.where(sparser, self.eps, (self.size / self.SHRINK).clamp(self.eps / self.LEAST, self.eps))
        self.changed = changed
        return sparser

    def keep(self, rows: Tensor) -> None:
        for name in ("changed", "share", "size"):
            setattr(self, name, getattr(self, name).index_select(0, rows))


def _changed(delta: Tensor) -> Tensor:
    """(n,) float: how many values each perturbation changes."""
    return (delta != 0).flatten(1).sum(1).to(torch.float32)

"""How Auto-PGD chooses its steps: per example, from the losses that it has seen. No model and no image is needed here."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rbl_attacks.geometry import TINY, on_sphere, per_image


class Schedule(Protocol):
    """A rule for n examples. momentum: weight of the new step against the last one; 0 for none."""

    momentum: float

    def move(self, gradient: Tensor) -> Tensor:
        """The step (n, ...) that is added before projection."""

    def observe(self, loss: Tensor, best_loss: Tensor, best_delta: Tensor) -> Tensor | None:
        """Told of a step's losses (n,), of the best so far, and of its perturbation (n, ...).

        Returns (n,) bool, which examples go back to their best point, or None between checkpoints.
        """

    def keep(self, rows: Tensor) -> None:
        """Forget all examples but these (bool mask)."""


class Euclidean:
    """Under linf and l2: halve the step where the loss stopped rising (arXiv:2003.01690, section 3).

    Checkpoints come after 0.22 N steps, then after periods that shrink by 0.03 N down to 0.06 N. At each, the step is halved
    and the search goes back to its best point where at most ``rho`` of the period's steps raised the loss, or where the
    best loss has not changed since a checkpoint at which the step was kept.

    steps: N. start_loss: (n,) at the start point.
    """

    momentum = 0.75

    def __init__(self, steps: int, eps: float, start_loss: Tensor, *, norm: str, rho: float) -> None:
        self.norm, self.rho = norm, rho
        self.period = max(int(0.22 * steps), 1)
        self.shortest = max(int(0.06 * steps), 1)
        self.shrink = max(int(0.03 * steps), 1)
        self.since = 0
        self.size = torch.full_like(start_loss, 2 * eps)
        self.last_loss = start_loss
        self.rises = torch.zeros_like(start_loss)
        self.checkpoint_loss = start_loss
        self.halved = torch.ones_like(start_loss, dtype=torch.bool)  # so that the first checkpoint cannot miss progress

    def move(self, gradient: Tensor) -> Tensor:
        """Along the gradient's sign (linf) or the gradient (l2), as long as the step size says."""
        unit = gradient.sign() if self.norm == "linf" else on_sphere(gradient, "l2", 1.0)
        return per_image(self.size, gradient) * unit

    def observe(self, loss: Tensor, best_loss: Tensor, best_delta: Tensor) -> Tensor | None:
        self.rises = self.rises + (loss > self.last_loss)
        self.last_loss = loss
        self.since += 1
        if self.since < self.period:
            return None
        oscillating = self.rises <= self.rho * self.period
        stuck = ~self.halved & (self.checkpoint_loss >= best_loss)
        self.halved = oscillating | stuck
        self.checkpoint_loss = best_loss.clone()
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.period = max(self.period - self.shrink, self.shortest)
        self.since, self.rises = 0, torch.zeros_like(self.rises)
        return self.halved

    def keep(self, rows: Tensor) -> None:
        for name in ("size", "last_loss", "rises", "checkpoint_loss", "halved"):
            setattr(self, name, getattr(self, name)[rows])


class Sparse:
    """Under l1: steps on few values, as few as the best point suggests (arXiv:2103.01208, algorithm 1).

    A step moves the values with the largest derivatives, by equal amounts. Every 0.04 N steps, the share of values that move
    becomes 1/1.5 of the share that the best perturbation changes; where that has become less than 0.95 of what it was, the
    step is reset to eps and the search goes back to its best point, and elsewhere it shrinks by 1.5, down to eps / 10.

    start: perturbation (n, ...) of the start point. given: it says how sparse to begin; otherwise a fifth of the values move.
    """

    momentum = 0.0
    SHARE, SHRINK, LEAST, SPARSER = 0.2, 1.5, 10, 0.95

    def __init__(self, steps: int, eps: float, start: Tensor, *, given: bool) -> None:
        self.eps = eps
        self.values = start[0].numel()
        self.period = max(int(0.04 * steps), 1)
        self.since = 0
        changed = _changed(start)
        self.changed = changed if given else torch.full_like(changed, self.values)
        self.share = changed / self.values / self.SHRINK if given else torch.full_like(changed, self.SHARE)
        self.size = torch.full_like(changed, eps)

    def move(self, gradient: Tensor) -> Tensor:
        magnitude = gradient.abs().flatten(1)
        place = ((1 - self.share) * self.values).clamp(0, self.values - 1).long()
        least = magnitude.sort(1).values.gather(1, place[:, None])
        chosen = torch.where(magnitude >= least, gradient.flatten(1).sign(), 0)
        unit = chosen / chosen.abs().sum(1, keepdim=True).clamp_min(TINY)
        return per_image(self.size, gradient) * unit.view_as(gradient)

    def observe(self, loss: Tensor, best_loss: Tensor, best_delta: Tensor) -> Tensor | None:
        self.since += 1
        if self.since < self.period:
            return None
        self.since = 0
        changed = _changed(best_delta)
        sparser = changed < self.SPARSER * self.changed
        self.share = changed / self.values / self.SHRINK
        self.size = torch.where(sparser, self.eps, (self.size / self.SHRINK).clamp(self.eps / self.LEAST, self.eps))
        self.changed = changed
        return sparser

    def keep(self, rows: Tensor) -> None:
        for name in ("changed", "share", "size"):
            setattr(self, name, getattr(self, name)[rows])


def _changed(delta: Tensor) -> Tensor:
    """(n,) float: how many values each perturbation changes."""
    return (delta != 0).flatten(1).sum(1).to(torch.float32)

"""Projected gradient ascent (Madry et al., 2018, arXiv:1706.06083) in linf, l2 and l1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.geometry import gaussian, in_ball, length, linear_optimum, on_sphere, per_image
from rbl_attacks.objectives import Objective, objective
from robustbench_lite import Randomness, Target, Threat


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Ascent of a fixed step, projected onto ball and box after each; beaten examples leave at once.

    steps: gradient steps of each restart. step: their length in the threat's norm; None for 2.5 eps / steps. restarts: runs
    from fresh random points, on what the earlier ones left. loss: ``ce``, ``margin`` or ``dlr``. start: ``uniform`` in the
    ball, or ``zero`` to start the first run at the clean image. sparsity: share of values that an l1 step leaves alone
    (SLIDE, Tramer & Boneh, 2019, arXiv:1904.13000); of the others, those that the box blocks stay too. finish: under l2 and
    l1, also try the linear optimum at the last gradient, for one forward pass: with it PGD is exact on linear models, where
    sparse steps and clipping after scaling stop a little short.

    A gradient that is exactly zero is replaced by a random direction. Returns the beaten point of each example, otherwise
    the one with the highest loss.
    """

    steps: Annotated[int, Field(ge=1)] = 40
    step: Annotated[float, Field(gt=0)] | None = None
    restarts: Annotated[int, Field(ge=1)] = 1
    loss: Objective = "ce"
    start: Literal["uniform", "zero"] = "uniform"
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.99
    finish: bool = True

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example that is never beaten."""
        return self.restarts * (2 * self.steps + 2)

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        best, best_loss = x.clone(), x.new_full((len(x),), -float("inf"))
        for restart in range(self.restarts):
            rows = (~target.broken).nonzero()[:, 0]
            if not len(rows):
                break
            point, loss = self._climb(
                target.select(rows), x[rows], y[rows], threat, rng.select(rows).child("restart", restart), first=restart == 0
            )
            better = loss > best_loss[rows]
            best[rows[better]], best_loss[rows[better]] = point[better], loss[better]
        return target.best(best)

    def _climb(
        self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness, *, first: bool
    ) -> tuple[Tensor, Tensor]:
        """One run on n examples: each one's point with the highest loss (n, ...), and that loss (n,)."""
        loss_of = objective(self.loss, target.num_classes)
        zero = self.start == "zero" and first
        current = x.clone() if zero else threat.project(x, x + in_ball(x, threat, rng.child("start")))
        best, best_loss = current.clone(), x.new_full((len(x),), -float("inf"))
        left = torch.arange(len(x), device=x.device)

        def keep(points: Tensor, loss: Tensor) -> Tensor:
            better = loss > best_loss[left]
            best[left[better]], best_loss[left[better]] = points[better], loss[better]
            return ~target.broken[left]

        gradient = torch.zeros_like(x)
        for number in range(self.steps):
            _, loss, gradient = target.loss_and_grad(current, loss_of, y[left], index=left)
            alive = keep(current, loss)
            left, current, gradient = left[alive], current[alive], gradient[alive]
            if not len(left):
                return best, best_loss
            gradient = _replace_zero(gradient, rng, left, number)
            move = self._direction(gradient, current, threat.norm) * self._length(threat.eps)
            current = threat.project(x[left], current + move)
        alive = keep(current, loss_of(target.logits(current, left), y[left]))
        left, gradient = left[alive], gradient[alive]
        if self.finish and threat.norm != "linf" and len(left):
            current = linear_optimum(x[left], gradient, threat)
            keep(current, loss_of(target.logits(current, left), y[left]))
        return best, best_loss

    def _length(self, eps: float) -> float:
        return 2.5 * eps / self.steps if self.step is None else self.step

    def _direction(self, gradient: Tensor, current: Tensor, norm: str) -> Tensor:
        """Steepest ascent of length 1 in the norm; for l1 spread over the largest derivatives that the box does not block."""
        if norm == "linf":
            return gradient.sign()
        if norm == "l2":
            return on_sphere(gradient, "l2", 1.0)
        blocked = ((gradient > 0) & (current >= 1)) | ((gradient < 0) & (current <= 0))
        size = torch.where(blocked, 0, gradient.abs()).flatten(1)
        count = max(1, round((1 - self.sparsity) * size.shape[1]))
        least = size.topk(count, dim=1).values[:, -1]
        kept = torch.where(size.view_as(gradient) >= per_image(least, gradient), gradient, 0)
        return on_sphere(torch.where(blocked, 0, kept).sign(), "l1", 1.0)


def _replace_zero(gradient: Tensor, rng: Randomness, rows: Tensor, number: int) -> Tensor:
    """Random directions for the examples whose gradient is exactly zero: a plateau is left in some direction or never."""
    zero = (length(gradient, "linf") == 0).flatten()
    if not bool(zero.any()):
        return gradient
    chosen = rng.select(rows[zero]).child("plateau", number)
    replaced = gradient.clone()
    replaced[zero] = gaussian(gradient[zero], chosen)
    return replaced

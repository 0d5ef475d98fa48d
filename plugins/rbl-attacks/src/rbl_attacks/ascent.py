"""What attacks that climb a loss by gradients share: who is left, the best point so far, steps and projections."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rbl_attacks.geometry import length, linear_optimum, per_image, random_where_zero, select, zeros
from rbl_attacks.schedule import Schedule
from robustbench_lite import Randomness, Target, Threat


class Climb:
    """One run from one start point of each example: the examples still in it, and the best point of each.

    target, x (N, ...), threat: as an attack has them. loss: what is climbed; called with the logits and ``labels``, each
    (N, ...). start: (N, ...), where the best points begin. directions: keep the gradients at the best points too.

    Beaten examples leave. Of the n that are left: rows (n,) in x; best (n, ...), best_loss (n,), best_gradient; gradient, the
    last one that was followed.
    """

    def __init__(
        self,
        target: Target,
        x: Tensor,
        threat: Threat,
        loss: Callable[..., Tensor],
        labels: tuple[Tensor, ...],
        start: Tensor,
        *,
        directions: bool = False,
    ) -> None:
        self.target, self.threat, self.loss = target, threat, loss
        self.clean, self.x, self.labels = x, x, labels
        self.rows = torch.arange(len(x), device=x.device)
        self.best, self.best_loss = start, x.new_full((len(x),), -math.inf)
        self.corners: tuple[Tensor, ...] = (threat.project(x, x - 2), threat.project(x, x + 2)) if threat.norm == "linf" else ()
        self.gradient = torch.zeros_like(x)
        self.best_gradient = self.gradient if directions else None
        self.finds = -1  # of the target, when it was last asked who is beaten
        self.leave()

    def run(self, steps: int, schedule: Schedule, *, plateau: Randomness | None = None, look_at_last: bool = True) -> Tensor:
        """Take ``steps`` steps from the best points; returns the last points (n, ...), which are evaluated without a gradient.

        plateau: random numbers for the N examples; where given, a gradient of zero is replaced by a random direction.
        look_at_last: False to leave their evaluation out.
        """
        current = previous = self.best
        loss = self.best_loss
        # Under a budget all ask alike, so that it ends all at once, and nobody by another's queries.
        settles = schedule.settles and not self.target.stochastic and self.target.budget is None
        for number in range(steps if len(self.rows) else 0):
            if settles and number:
                loss, self.gradient = self.ask_moved(current, previous, loss, self.gradient)
            else:
                loss, self.gradient = self.ask(current)
            if not number:
                schedule.begin(loss)
            elif (back := schedule.observe(loss, self.best_loss, self.best, self.x)) is not None:
                mask = per_image(back, current)
                current, loss = torch.where(mask, self.best, current), torch.where(back, self.best_loss, loss)
                if self.best_gradient is not None:
                    self.gradient = torch.where(mask, self.best_gradient, self.gradient)
            if (stays := self.leave()) is not None:
                current, previous, loss = select(stays, current, previous, loss)
                schedule.keep(stays)
                if not len(self.rows):
                    return current
            if plateau is not None:
                self.gradient = self.replace_zero(self.gradient, plateau, number)
            moved = self.project(current + schedule.move(self.gradient, current))
            if schedule.momentum and number:
                pushed = torch.lerp(current, moved, schedule.momentum)
                moved = self.project(pushed.add_(current - previous, alpha=1 - schedule.momentum))
            current, previous = moved, current
        if look_at_last and len(self.rows):
            self.look(current)
        return current

    def look(self, points: Tensor) -> None:
        """Evaluate points (n, ...) from which nothing starts any more: no gradient is needed."""
        self.keep(points, self.loss(self.target.logits(points, self._index), *self.labels))
        self.leave()

    def try_linear_optimum(self, gradient: Tensor) -> None:
        """One forward pass at the points that gradients (n, ...) point to."""
        if len(self.rows):
            self.look(linear_optimum(self.x, gradient, self.threat))

    def result(self) -> tuple[Tensor, Tensor]:
        """The best points (N, ...) and their losses (N,); of the beaten, whose points the target has, clean images and -inf."""
        points, loss = self.clean.clone(), self.clean.new_full((len(self.clean),), -math.inf)
        points[self.rows], loss[self.rows] = self.best, self.best_loss
        return points, loss

    def project(self, points: Tensor) -> Tensor:
        """``threat.project`` for the examples that are left; under linf, ball and box are one box, whose corners are known."""
        return torch.clamp(points, *self.corners) if self.corners else self.threat.project(self.x, points)

    def leave(self) -> Tensor | None:
        """Let the beaten go. Returns the positions of those who stay, or None where all do."""
        if self.target.finds == self.finds:
            return None
        self.finds = self.target.finds
        beaten = self.target.broken if self._index is None else self.target.broken[self.rows]
        if not bool(beaten.any()):
            return None
        stays = (~beaten).nonzero()[:, 0]  # once: a mask is turned into positions by everything that it is used on
        self.labels, self.corners = tuple(select(stays, *self.labels)), tuple(select(stays, *self.corners))
        self.rows, self.x, self.gradient = select(stays, self.rows, self.x, self.gradient)
        self.best, self.best_loss = select(stays, self.best, self.best_loss)
        if self.best_gradient is not None:
            self.best_gradient = self.best_gradient.index_select(0, stays)
        return stays

    @property
    def _index(self) -> Tensor | None:
        return None if len(self.rows) == len(self.clean) else self.rows

    def ask(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (n,) and gradients (n, ...) at points (n, ...); nobody leaves yet."""
        _, loss, gradient = self.target.loss_and_grad(points, self.loss, *self.labels, index=self._index)
        self._follow(points, loss, gradient)
        return loss, gradient

    def ask_moved(self, points: Tensor, previous: Tensor, loss: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """As ``ask``, except where points are the ``previous`` ones: their losses and gradients are known."""
        rows = length(points - previous, "linf").flatten().nonzero()[:, 0]
        if len(rows) == len(points):
            return self.ask(points)
        if len(rows):
            moved, index, *labels = select(rows, points, self.rows, *self.labels)
            _, *found = self.target.loss_and_grad(moved, self.loss, *labels, index=index)
            loss, gradient = (old.index_copy(0, rows, new) for old, new in zip((loss, gradient), found, strict=True))
            self._follow(points, loss, gradient)
        return loss, gradient

    def _follow(self, points: Tensor, loss: Tensor, gradient: Tensor) -> None:
        better = self.keep(points, loss)
        if self.best_gradient is not None:
            self.best_gradient = torch.where(better, gradient, self.best_gradient)

    def keep(self, points: Tensor, loss: Tensor) -> Tensor:
        """Keep the points (n, ...) whose losses (n,) are higher than all before: (n, 1, ...) bool."""
        better = loss > self.best_loss
        mask = per_image(better, points)
        self.best, self.best_loss = torch.where(mask, points, self.best), torch.where(better, loss, self.best_loss)
        return mask

    def replace_zero(self, gradient: Tensor, rng: Randomness, number: int) -> Tensor:
        """Random directions for the examples whose gradient is exactly zero: a plateau is left in some direction or never."""
        if zeros(gradient) is None:  # before the stream is made, which takes as long
            return gradient
        return random_where_zero(gradient, rng.child("plateau", number), 0, self.rows)

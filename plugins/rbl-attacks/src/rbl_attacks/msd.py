"""Multi steepest descent (Maini et al., 2020, arXiv:1909.04068): one perturbation against a union of linf, l2 and l1 balls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.ascent import Climb
from rbl_attacks.best import best_of
from rbl_attacks.geometry import in_ball, per_image, select
from rbl_attacks.objectives import Objective, objective
from rbl_attacks.schedule import steepest
from robustbench_lite import InvalidParameter, InvalidThreat, Randomness, Target, Threat


@dataclass(frozen=True, kw_only=True)
class MSD:
    """Ascent that tries the steepest step of every ball of the union, and goes where the loss is highest.

    steps: gradient steps of each restart; each costs a gradient and one more forward pass for every ball. linf_step, l2_step,
    l1_step: length of a step in units of that ball's radius. values: a step under l1 moves as many values as a random number
    from this range says, its ends included, by equal amounts; another number for each example and step. restarts: runs on what
    the earlier ones left; the first starts at the clean image, the others at random points of the balls in turn. loss: ``ce``,
    ``margin`` or ``dlr``.

    The balls are those of the union, in linf, l2 and l1; raises InvalidThreat for others. The defaults are those that the
    authors published for CIFAR-10 (radii 0.03, 0.5 and 12; steps 0.003, 0.05, and 0.05 on each of 20 values), as ratios. As in
    PGD, a step under l1 leaves alone what the box blocks, the projection onto the l1 ball takes the box into account, and a
    gradient of zero is replaced by a random direction.
    """

    steps: Annotated[int, Field(ge=1)] = 50
    linf_step: Annotated[float, Field(gt=0)] = 0.1
    l2_step: Annotated[float, Field(gt=0)] = 0.1
    l1_step: Annotated[float, Field(gt=0)] = 1 / 12
    values: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (5, 20)
    restarts: Annotated[int, Field(ge=1)] = 1
    loss: Objective = "ce"

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example that is never beaten, against a union of three balls."""
        return 5 * self.steps * self.restarts

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        balls = threat.parts or (threat,)
        if unknown := [ball.norm for ball in balls if ball.norm not in ("linf", "l2", "l1")]:
            raise InvalidThreat(f"msd takes no steps under {unknown[0]}: {threat}", hint="use balls in linf, l2 and l1")
        if self.values[0] > self.values[1]:
            raise InvalidParameter(f"values={list(self.values)} is no range", hint="write the smaller number first")
        loss = objective(self.loss, target)

        def run(number: int, left: Target, rows: Tensor) -> tuple[Tensor, Tensor]:
            chosen, clean = rng.select(rows).child("restart", number), x[rows]
            ball = balls[number % len(balls)]
            start = ball.project(clean, clean + in_ball(clean, ball, chosen.child("start"))) if number else clean
            climb = Climb(left, clean, threat, loss, (y[rows],), start)
            self._run(climb, balls, chosen)
            return climb.result()

        return best_of(range(self.restarts), run, target, x)

    def _run(self, climb: Climb, balls: tuple[Threat, ...], rng: Randomness) -> None:
        current = climb.best
        for number in range(self.steps):
            if not len(climb.rows):
                return
            _, gradient = climb.ask(current)
            if (stays := climb.leave()) is not None:
                current, gradient = select(stays, current, gradient)
                if not len(climb.rows):
                    return
            gradient = climb.replace_zero(gradient, rng, number)
            chosen = rng.select(climb.rows)
            steps = [self._step(ball, gradient, current, chosen, number) for ball in balls]
            current = _best(climb, [ball.project(climb.x, current + step) for ball, step in zip(balls, steps, strict=True)])

    def _step(self, ball: Threat, gradient: Tensor, points: Tensor, rng: Randomness, number: int) -> Tensor:
        count: int | Tensor = 1
        if ball.norm == "l1":
            low, high = (min(values, gradient[0].numel()) for values in self.values)
            count = rng.child("values").integers(None, (1,), low=low, high=high + 1, draw=number)[:, 0]
        size = {"linf": self.linf_step, "l2": self.l2_step, "l1": self.l1_step}[ball.norm] * ball.eps
        return steepest(gradient, points, ball.norm, count) * size


def _best(climb: Climb, candidates: list[Tensor]) -> Tensor:
    """Evaluate all candidates (n, ...) in one call; the best one of each example that is not beaten, the first at a tie."""
    count, n = len(candidates), len(climb.rows)
    logits = climb.target.logits(torch.cat(candidates), climb.rows.repeat(count))
    losses = climb.loss(logits, *(each.repeat(count) for each in climb.labels)).view(count, n)
    best, loss = candidates[0], losses[0]
    for other, its in zip(candidates[1:], losses[1:], strict=True):
        better = its > loss
        best, loss = torch.where(per_image(better, other), other, best), torch.where(better, its, loss)
    climb.keep(best, loss)
    stays = climb.leave()
    return best if stays is None else best.index_select(0, stays)

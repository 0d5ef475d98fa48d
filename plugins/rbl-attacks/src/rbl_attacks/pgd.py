"""Projected gradient ascent (Madry et al., 2018, arXiv:1706.06083) in linf, l2 and l1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from rbl_attacks.ascent import Climb
from rbl_attacks.best import best_of
from rbl_attacks.geometry import gaussian, in_ball
from rbl_attacks.objectives import Objective, objective
from rbl_attacks.schedule import Fixed
from robustbench_lite import Randomness, Target, Threat, losses

NEAR = 0.001  # standard deviation of the noise that the divergence starts from: at the clean image itself it is flat


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Ascent of a fixed step, projected onto ball and box after each; beaten examples leave at once.

    steps: gradient steps of each restart. step: their length in the threat's norm; None for 2.5 eps / steps. restarts: runs
    from fresh random points, on what the earlier ones left. loss: ``ce``, ``margin``, ``dlr``, or ``kl``, the divergence of
    the prediction from that at the clean image, climbed from 0.001 gaussian noise around it whatever ``start`` says (the inner
    loop of TRADES, Zhang et al., 2019, arXiv:1901.08573). start: ``uniform`` in the ball, or ``zero`` to start the first run
    at the clean image. sparsity: share of values that an l1 step leaves alone (SLIDE, Tramer & Boneh, 2019, arXiv:1904.13000);
    of the others, those that the box blocks stay too. finish: under l2 and l1, also try the linear optimum at the last
    gradient, for one forward pass: with it PGD is exact on linear models, where sparse steps and clipping after scaling stop a
    little short.

    A gradient that is exactly zero is replaced by a random direction. Returns the beaten point of each example, otherwise
    the one with the highest loss.
    """

    steps: Annotated[int, Field(ge=1)] = 40
    step: Annotated[float, Field(gt=0)] | None = None
    restarts: Annotated[int, Field(ge=1)] = 1
    loss: Objective | Literal["kl"] = "ce"
    start: Literal["uniform", "zero"] = "uniform"
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.99
    finish: bool = True

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example that is never beaten."""
        return self.restarts * (2 * self.steps + 2) + (self.loss == "kl")

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        if self.loss == "kl":
            loss, labels = _divergence, target.logits(x)[:, : target.num_classes]
        else:
            loss, labels = objective(self.loss, target), y

        def run(number: int, left: Target, rows: Tensor) -> tuple[Tensor, Tensor]:
            chosen = rng.select(rows).child("restart", number)
            start = self._start(x[rows], threat, chosen.child("start"), first=number == 0)
            climb = Climb(left, x[rows], threat, loss, (labels[rows],), start)
            step = 2.5 * threat.eps / self.steps if self.step is None else self.step
            climb.run(self.steps, Fixed(step, threat.norm, sparsity=self.sparsity), plateau=chosen)
            if self.finish and threat.norm != "linf":
                climb.try_linear_optimum(climb.gradient)
            return climb.result()

        return best_of(range(self.restarts), run, target, x)

    def _start(self, x: Tensor, threat: Threat, rng: Randomness, *, first: bool) -> Tensor:
        if self.loss == "kl":
            return threat.project(x, x + NEAR * gaussian(x, rng))
        return x if self.start == "zero" and first else threat.project(x, x + in_ball(x, threat, rng))


def _divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Of the classes alone: an example that is driven to be refused is not beaten."""
    return losses.divergence(logits[:, : reference.shape[1]], reference)

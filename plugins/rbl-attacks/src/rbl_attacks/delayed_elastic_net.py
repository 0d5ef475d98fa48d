"""An attack whose distance penalties wait for the first adversarial point (Cancela, Bolon-Canedo & Alonso-Betanzos, 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.adam import Adam
from rbl_attacks.best import Best
from rbl_attacks.geometry import per_image
from rbl_attacks.margins import leads_of, likely_classes
from robustbench_lite import Randomness, Target, Threat

# By goal: l2, l1, extra steps.
PUBLISHED = {"rank": (1e-4, 1e-4, 250), "phishing": (1e-2, 1e-2, 1000)}
# From these steps on, the step is five times as long.
LONGER = (2000, 3500)


@dataclass(frozen=True, kw_only=True)
class DelayedElasticNet:
    """Descend to the first adversarial point without regard to distance; from then on with a pull back to the clean image.

    goal: ``rank`` wants n wrong classes before the label, ``phishing`` the n-th most likely wrong class (the last, where there
    are fewer) with a probability above ``confidence``. steps: at most; the original has no limit. extra: steps of an example
    from its first adversarial point on; then it leaves. lr: of Adam without bias correction, in units of a value; five times
    as long from step 2000 on, 25 times from step 3500 on. l2, l1: weights of the pull, l2 * delta + l1 * sign(delta), which is
    added to the gradient at every extra step (rank) or where the point is adversarial (phishing). None: as published,
    extra 250, l2 = l1 = 1e-4 (rank), or extra 1000, l2 = l1 = 1e-2 (phishing). loss_space: of the hinges that are descended,
    ``probabilities``, or ``logits``, which keep a gradient where the softmax is saturated.

    The published weights and lr suit the small gradients of ImageNet networks. On small images they leave points up to 1.6
    times as long as need be under l2, and several times under l1 and l0: there ``lr=1e-3,l2=1,l1=0`` does well under l2, and
    ``lr=0.01,l2=0,l1=0.3`` under l1 and l0.

    In its extra steps an example's values return to those of the clean image for good once they would cross them. The smallest
    point in the threat's norm that reaches the goal is returned; where that is more than any wrong class, nothing else that the
    target saw counts. Other than in the original, a tie of classes is no success, and the
    classes to be brought before the label are those of the point itself, not of the one before.
    """

    goal: Literal["rank", "phishing"] = "rank"
    n: Annotated[int, Field(ge=1)] = 1
    steps: Annotated[int, Field(ge=1)] = 5000
    extra: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(gt=0)] = 1e-4
    l2: Annotated[float, Field(ge=0)] | None = None
    l1: Annotated[float, Field(ge=0)] | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    loss_space: Literal["probabilities", "logits"] = "probabilities"

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example that is never beaten."""
        return 2 * self.steps + (self.goal == "phishing")

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        l2, l1, extra = self._published()
        goal = self._goal(target, x, y)
        seen = target if goal.any_wrong_class else target.forgetful()
        best = Best(x)
        rows, current = torch.arange(len(x), device=x.device), x
        adam, taken = Adam(x, corrected=False), torch.zeros_like(y)
        for number in range(self.steps):
            logits, _, gradient = seen.loss_and_grad(current, goal.loss, y, goal.aims[rows], index=rows)
            won = goal.reached(logits, y, goal.aims[rows])
            best.keep(rows[won], current[won], -threat.size(x, current)[won])

            delta = current - x
            late = (won & delta.flatten(1).any(1)) | (taken > 0)  # a clean image may win on a stochastic defense, by chance
            taken = taken + late
            pulled = per_image(late if self.goal == "rank" else won, x)
            gradient = gradient.nan_to_num(0, 0, 0) + torch.where(pulled, l2 * delta + l1 * delta.sign(), 0)
            length = self.lr * 5 ** sum(number >= longer for longer in LONGER)
            moved = (current - adam.move(gradient, length)).clamp(0, 1)
            current = torch.where(per_image(late, x) & ((moved - x) * delta <= 0), x, moved)

            going = taken < extra
            if not bool(going.all()):
                adam.keep(going)
                rows, current, taken, x, y = (p[going] for p in (rows, current, taken, x, y))
            if not len(rows):
                break
        return best.points

    def _published(self) -> tuple[float, float, int]:
        l2, l1, extra = PUBLISHED[self.goal]
        return (
            l2 if self.l2 is None else self.l2,
            l1 if self.l1 is None else self.l1,
            extra if self.extra is None else self.extra,
        )

    def _goal(self, target: Target, x: Tensor, y: Tensor) -> _Rank | _Phishing:
        classes = target.num_classes
        n, logits = min(self.n, classes - 1), self.loss_space == "logits"
        if self.goal == "rank":
            return _Rank(n, classes, logits=logits, aims=y)
        aims = likely_classes(target.logits(x), y, classes, n)[:, -1]
        return _Phishing(self.confidence, classes, logits=logits, aims=aims)


class _Rank:
    """The label is not among the ``n`` first classes. ``aims`` mean nothing."""

    def __init__(self, n: int, classes: int, *, logits: bool, aims: Tensor) -> None:
        self.n, self.classes, self.logits, self.aims = n, classes, logits, aims
        self.any_wrong_class = n == 1  # whether every adversarial point is a success

    def loss(self, logits: Tensor, y: Tensor, aims: Tensor) -> Tensor:
        """(n,) by how much the label leads those wrong classes that are first, summed, and so the refusal; 0 where neither."""
        scores = logits if self.logits else logits.softmax(1)
        first = scores.gather(1, likely_classes(logits.detach(), y, self.classes, self.n))
        held = torch.cat([scores.gather(1, y[:, None]), scores[:, self.classes :]], 1)
        return (held[:, :, None] - first[:, None]).clamp_min(0).flatten(1).sum(1)

    def reached(self, logits: Tensor, y: Tensor, aims: Tensor) -> Tensor:
        """(n,) bool."""
        last = likely_classes(logits, y, self.classes, self.n)[:, -1:]
        return leads_of(logits, y, last, self.classes)[:, 0] > 0


class _Phishing:
    """Each example's class of ``aims`` (N,) is the first, with a probability above ``confidence``."""

    any_wrong_class = False

    def __init__(self, confidence: float, classes: int, *, logits: bool, aims: Tensor) -> None:
        self.confidence, self.classes, self.logits, self.aims = confidence, classes, logits, aims
        self.wanted = math.log(confidence / (1 - confidence))  # of the logit against all others together

    def loss(self, logits: Tensor, y: Tensor, aims: Tensor) -> Tensor:
        """(n,) what the class is short of; 0 where nothing."""
        aim = aims[:, None]
        if self.logits:
            others = logits.scatter(1, aim, -math.inf)
            own = logits.gather(1, aim)[:, 0]
            missing, best, wanted = own - others.logsumexp(1), others.amax(1), self.wanted
        else:
            shares = logits.softmax(1)
            own = missing = shares.gather(1, aim)[:, 0]
            best, wanted = shares.scatter(1, aim, -math.inf).amax(1), self.confidence
        short = (wanted - missing).clamp_min(0)
        return short if self.confidence >= 0.5 else short + (best.detach() - own).clamp_min(0)

    def reached(self, logits: Tensor, y: Tensor, aims: Tensor) -> Tensor:
        """(n,) bool."""
        aim = aims[:, None]
        own, others = logits.gather(1, aim)[:, 0], logits.scatter(1, aim, -math.inf)
        return (own > others.amax(1)) & (own - others.logsumexp(1) > self.wanted)

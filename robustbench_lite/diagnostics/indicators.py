"""Indicators of attack failure (Pintor et al., 2022, arXiv:2106.09947): why one attack did not beat the examples that it left.

=========================  =================================================================================================
unavailable-gradients      a gradient that the attack followed was exactly zero, or autograd finds no way to the image
unstable-predictions       mean relative change of the loss under uniform noise of width 8/255 around the image, at most 1
silent-success             the returned point is not adversarial, and an earlier one was
incomplete-optimization    the loss, scaled to [0, 1], still fell by more than 0.05 within the last ten points
transfer-failure           the model that the point was crafted on predicts another class than the defense
unconstrained-failure      the attack does not beat the example even without a limit
=========================  =================================================================================================

The loss is the margin z_y - max z_other whatever the attack climbs: all that it asks the target is seen, and of that the logits
are what every attack has. A point is each call of the target on the example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_lite import losses
from robustbench_lite.applicable import sized
from robustbench_lite.deployed import misclassified
from robustbench_lite.diagnostics.attacks import whole_box
from robustbench_lite.diagnostics.catalogue import NotApplicable
from robustbench_lite.diagnostics.runs import Mask
from robustbench_lite.diagnostics.subject import Subject
from robustbench_lite.randomness import Randomness
from robustbench_lite.resolve import ResolvedAttack
from robustbench_lite.runner import run_shard
from robustbench_lite.target import Target
from robustbench_lite.threat import Threat

DRAWS = 100
WIDTH = 8 / 255
LAST = 10
STILL_FALLING = 0.05

ADVICE = {
    "unavailable-gradients": "offer a surrogate (BPDA), or attack the logits",
    "unstable-predictions": "use EOT, or average the loss over noise around the point",
    "silent-success": "return the best point that was seen (target.best)",
    "incomplete-optimization": "take more steps, or steps of another size",
    "transfer-failure": "attack the defense itself",
    "unconstrained-failure": "climb another loss, or take larger steps",
}


@dataclass(frozen=True, kw_only=True)
class Indicators:
    """What was seen of one attack. values: (n,) by indicator, in [0, 1]. failed: (n,) bool, what it did not beat."""

    attack: str
    failed: Mask
    values: dict[str, np.ndarray]

    @property
    def means(self) -> dict[str, float]:
        """Each indicator's mean over the failed examples; 0 where none failed."""
        return {name: float(value[self.failed].mean()) if self.failed.any() else 0.0 for name, value in self.values.items()}


class Trace:
    """What an attack asked of its target about N examples, which ``begin`` tells: for each its losses in order, whether some
    point was adversarial (found), and whether a gradient was exactly zero (zero).
    """

    def __init__(self, threat: Threat, rejects: bool) -> None:
        self._threat, self._rejects = threat, rejects
        self.losses: list[list[float]] = []

    def begin(self, x: Tensor, y: Tensor) -> None:
        """The examples x (N, ...) and y (N,) that are attacked."""
        self._x, self._y = x, y
        self.losses = [[] for _ in range(len(x))]
        self.found = np.zeros(len(x), dtype=bool)
        self.zero = np.zeros(len(x), dtype=bool)

    def asked(self, rows: Tensor | None, x: Tensor, scores: Tensor) -> None:
        """See ``target.Watch``."""
        who = torch.arange(len(self._y), device=x.device) if rows is None else rows
        y = self._y[who]
        inside = self._threat.contains(self._x[who], x) & self._threat.in_box(x)
        beaten = (misclassified(scores, y, self._rejects) & inside).cpu().numpy()
        order = who.cpu().numpy()
        self.found[order[beaten]] = True
        columns = scores[:, :-1] if self._rejects else scores
        for row, loss in zip(order.tolist(), (-losses.margin(columns, y)).tolist(), strict=True):
            self.losses[row].append(loss)

    def followed(self, rows: Tensor | None, gradient: Tensor) -> None:
        """See ``target.Watch``."""
        zero = (gradient == 0).flatten(1).all(1).cpu().numpy()
        self.zero[slice(None) if rows is None else rows.cpu().numpy()] |= zero


def indicate(subject: Subject, selector: str) -> Indicators:
    """Run an attack on the subject's examples, and say why it failed where it did.

    Raises NotApplicable where it cannot be run here.
    """
    with subject.seeded("indicators"):
        return _indicate(subject, selector)


def _indicate(subject: Subject, selector: str) -> Indicators:
    threat = subject.threat
    attack = subject.resolve(selector, threat)
    spec = {**subject.spec, "attack": attack.spec(), "threat": sized(attack, threat)}
    trace = Trace(threat, subject.deployed.rejects)
    watched = _Watched(attack.instance, trace)
    ids, surrogates = tuple(subject.ids.tolist()), subject.craft(attack)
    caught = replace(attack, instance=watched)
    result = run_shard(spec, subject.deployed, caught, subject.x, subject.y, ids, 0, surrogates, trace)
    if result.failure is not None:
        raise NotApplicable(f"{attack.label} raised {type(result.failure).__name__}: {result.failure}")
    if not len(trace.losses):
        raise NotApplicable("no example is classified correctly")
    arrays = {name: values[result.arrays["clean_correct"]] for name, values in result.arrays.items()}
    correct = torch.from_numpy(result.arrays["clean_correct"]).to(subject.x.device)
    x, rows = subject.x[correct], correct.cpu().numpy()
    points = watched.points if isinstance(watched.points, Tensor) and watched.points.shape == x.shape else x
    reached = (arrays["rejected"] == 0) & (arrays["size"] <= threat.limit)
    crafted_on: Callable[[Tensor], Tensor] | None = subject.deployed.surrogate
    if surrogates:
        crafted_on = partial(_mean, surrogates)
    found = {
        "unavailable-gradients": trace.zero | bool(subject.differentiable and subject.interruption),
        "unstable-predictions": _unstable(subject, correct),
        "silent-success": ~reached & trace.found,
        "incomplete-optimization": np.array([_falls(each) for each in trace.losses]),
        "transfer-failure": np.zeros(len(x)) if crafted_on is None else _disagree(subject, points, correct, crafted_on),
        "unconstrained-failure": _unconstrained(subject, attack, selector)[rows],
    }
    values = {name: np.zeros(len(subject.x)) for name in found}
    for name, value in found.items():
        values[name][rows] = value
    failed = np.zeros(len(subject.x), dtype=bool)
    failed[rows] = ~reached
    return Indicators(attack=attack.label, failed=failed, values=values)


def _falls(loss: list[float]) -> bool:
    """Whether the running minimum of a loss, scaled to [0, 1], still fell at the end."""
    values = np.asarray(loss)
    span = float(values.max() - values.min()) if len(values) else 0.0
    if span == 0:
        return False
    best = np.minimum.accumulate((values - values.min()) / span)[-LAST:]
    return bool(best.max() - best.min() > STILL_FALLING)


def _unstable(subject: Subject, correct: Tensor) -> np.ndarray:
    x, rows = subject.x[correct], correct.nonzero()[:, 0]
    y = subject.y[rows]

    def loss(points: Tensor) -> Tensor:
        return -losses.margin(subject.scores(points, rows)[:, : subject.classes], y)

    at = loss(x)
    total = torch.zeros_like(at)
    rng = Randomness("diagnostics|unstable", subject.ids[rows])
    for draw in range(DRAWS):
        moved = x + rng.uniform(None, x.shape[1:], draw=draw, low=-WIDTH / 2, high=WIDTH / 2)
        total += (at - loss(moved)).abs() / torch.where(at == 0, 1.0, at.abs())
    return (total / DRAWS).clamp(max=1.0).cpu().numpy()


def _unconstrained(subject: Subject, attack: ResolvedAttack, selector: str) -> np.ndarray:
    """(n,) what the attack does not beat without a limit."""
    minimal = attack.declared.goal == "minimal-norm"
    run, _ = subject.attack(selector, subject.threat if minimal else whole_box(subject))
    return np.asarray(run.cell.arrays["clean_correct"] & ~run.cell.arrays["success"])


def _disagree(subject: Subject, points: Tensor, correct: Tensor, crafted_on: Callable[[Tensor], Tensor]) -> np.ndarray:
    """(n,) where the model that points were crafted on predicts another class than the defense."""
    rows = correct.nonzero()[:, 0]
    with torch.no_grad(), subject.same_draws(subject.ids[rows]):
        theirs = crafted_on(points).argmax(1)
    apart = theirs != subject.scores(points, rows).argmax(1)
    return apart.cpu().numpy().astype(float)


def _mean(surrogates: Any, points: Tensor) -> Tensor:
    return torch.stack([each.module(points)[:, : each.num_classes] for each in surrogates]).mean(0)


class _Watched:
    """An attack, whose examples are told to a trace, and what it returned last."""

    def __init__(self, attack: Any, trace: Trace) -> None:
        self._attack, self._trace = attack, trace
        self.points: object = None

    def __call__(self, target: Target, x: Tensor, y: Tensor, *others: Any) -> object:
        self._trace.begin(x.clone(), y.clone())
        self.points = self._attack(target, x, y, *others)
        return self.points

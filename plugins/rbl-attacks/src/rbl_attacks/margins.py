"""By how much a class leads, and which classes are near: what attacks ask of logits to know where they are.

A defense may have one more column than classes, the score of a refusal: a point is adversarial when a wrong class leads the
label *and* the refusal, as the judge sees it. ``classes`` is ``target.num_classes``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustbench_lite import Target, Threat


def lead(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """(n,) by how much the best wrong class leads: positive exactly where the point is adversarial.

    -inf where that is no finite number: the judge counts no such point, and a search is not to end at one.
    """
    label = y[:, None]
    scores = logits if logits.shape[1] == classes else logits[:, :classes]
    ahead = scores.scatter(1, label, -math.inf).amax(1) - _held(logits, label, classes)
    return ahead.nan_to_num_(-math.inf, -math.inf, -math.inf)


def leads_of(logits: Tensor, y: Tensor, others: Tensor, classes: int) -> Tensor:
    """(n, k) by how much each of the classes ``others`` (n, k) leads the label."""
    return logits.gather(1, others) - _held(logits, y[:, None], classes)[:, None]


def _held(logits: Tensor, label: Tensor, classes: int) -> Tensor:
    """(n,) what a wrong class has to lead: the score of the label (n, 1), or of a refusal where that is higher."""
    held = logits.gather(1, label).squeeze(1)
    return torch.maximum(held, logits[:, classes:].amax(1)) if logits.shape[1] > classes else held


def wrong_classes(y: Tensor, classes: int) -> Tensor:
    """(n, classes - 1): all classes but the label."""
    every = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    return every + (every >= y[:, None])


def likely_classes(logits: Tensor, y: Tensor, classes: int, count: int) -> Tensor:
    """(n, k): the wrong classes with the largest logits, the largest first; at most ``count``."""
    wrong = logits[:, :classes].scatter(1, y[:, None], -math.inf)
    return wrong.argsort(dim=1, descending=True, stable=True)[:, : min(count, classes - 1)]


def unfinished(target: Target, threat: Threat) -> Tensor:
    """(N,) bool: where to go on: with a radius where not beaten in it, without one everywhere: smaller points may exist."""
    return ~target.broken if math.isfinite(threat.eps) else torch.ones_like(target.broken)

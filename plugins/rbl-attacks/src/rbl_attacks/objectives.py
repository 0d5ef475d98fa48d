"""Losses by name, as parameters of attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from robustbench_lite import InvalidParameter, Target, losses

Objective = Literal["ce", "margin", "dlr"]

_LOSSES = {"ce": losses.cross_entropy, "margin": losses.margin, "dlr": losses.dlr}


def objective(name: Objective, target: Target) -> Callable[..., Tensor]:
    """The loss ``(logits, y) -> (n,)`` of that name. Raises InvalidParameter for dlr with fewer than three classes."""
    num_classes = target.num_classes
    if name == "dlr" and num_classes < 3:
        raise InvalidParameter(f"loss=dlr needs at least 3 classes, the defense has {num_classes}", hint="use loss=margin")
    loss = _LOSSES[name]
    if not target.rejects:
        return loss  # as it is, the core knows its derivative
    return lambda logits, y: loss(as_judged(logits, y, num_classes), y)


def targeted(target: Target) -> Callable[..., Tensor]:
    """The loss ``(logits, y, aim) -> (n,)`` that rises from y towards a class: targeted dlr, or cross-entropy for K = 3."""
    num_classes = target.num_classes
    if num_classes < 4:
        return lambda logits, y, aim: losses.targeted_cross_entropy(as_judged(logits, y, num_classes), aim)
    if not target.rejects:
        return losses.targeted_dlr
    return lambda logits, y, aim: losses.targeted_dlr(as_judged(logits, y, num_classes), y, aim)


def as_judged(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """(n, classes): the label's logit raised to that of refusing, where a defense can refuse (it has one more column).

    Some other class leads exactly where the judge counts a success, so that losses of plain logits can be used.
    """
    if logits.shape[1] == classes:
        return logits
    held = torch.maximum(logits.gather(1, y[:, None]).squeeze(1), logits[:, classes])
    return logits[:, :classes].scatter(1, y[:, None], held[:, None])

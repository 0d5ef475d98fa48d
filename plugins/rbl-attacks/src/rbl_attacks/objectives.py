"""Losses by name, as parameters of attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from robustbench_lite import InvalidParameter, losses

Objective = Literal["ce", "margin", "dlr"]

_LOSSES = {"ce": losses.cross_entropy, "margin": losses.margin, "dlr": losses.dlr}


def objective(name: Objective, num_classes: int) -> Callable[..., Tensor]:
    """The loss ``(logits, y) -> (n,)`` of that name. Raises InvalidParameter for dlr with fewer than three classes."""
    if name == "dlr" and num_classes < 3:
        raise InvalidParameter(f"loss=dlr needs at least 3 classes, the defense has {num_classes}", hint="use loss=margin")
    loss = _LOSSES[name]
    return lambda logits, y: loss(as_judged(logits, y, num_classes), y)


def targeted(num_classes: int) -> Callable[..., Tensor]:
    """The loss ``(logits, y, target) -> (n,)`` that rises from y towards a class: targeted dlr, or cross-entropy for K = 3."""
    if num_classes < 4:
        return lambda logits, y, target: losses.targeted_cross_entropy(as_judged(logits, y, num_classes), target)
    return lambda logits, y, target: losses.targeted_dlr(as_judged(logits, y, num_classes), y, target)


def as_judged(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """(n, classes): the label's logit raised to that of refusing, where a defense can refuse (it has one more column).

    Some other class leads exactly where the judge counts a success, so that losses of plain logits can be used.
    """
    if logits.shape[1] == classes:
        return logits
    held = torch.maximum(logits.gather(1, y[:, None]).squeeze(1), logits[:, classes])
    return logits[:, :classes].scatter(1, y[:, None], held[:, None])

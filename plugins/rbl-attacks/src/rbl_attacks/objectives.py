"""Losses by name, as parameters of attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from robustbench_lite import InvalidParameter, losses

Objective = Literal["ce", "margin", "dlr"]

_LOSSES = {"ce": losses.cross_entropy, "margin": losses.margin, "dlr": losses.dlr}


def objective(name: Objective, num_classes: int) -> Callable[..., Tensor]:
    """The loss ``(logits, y) -> (n,)`` of that name. Raises InvalidParameter for dlr with fewer than three classes."""
    if name == "dlr" and num_classes < 3:
        raise InvalidParameter(f"loss=dlr needs at least 3 classes, the defense has {num_classes}", hint="use loss=margin")
    return _LOSSES[name]

"""Batch norm of two branches: clean and adversarial images are normalised by statistics of their own (arXiv:1911.09665)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from rbl_defenses.surgery import Wrapped, wrap


class SplitNorm(Wrapped):
    """Two batch norms with their own statistics, scales and shifts. ``wrapped``, of the adversarial branch, is deployed."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__(wrapped)
        self.clean = copy.deepcopy(wrapped)
        self.is_clean = False

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = (self.clean if self.is_clean else self.wrapped)(x)
        return normalised


def split_norms(model: nn.Module) -> dict[str, SplitNorm]:
    """Those of a model by their names, in its order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SplitNorm)}


def split(model: nn.Module) -> None:
    """Split every batch norm of a model, those of shortcuts included."""
    wrap(model, nn.BatchNorm2d, SplitNorm)


@contextmanager
def clean_branch(model: nn.Module) -> Iterator[None]:
    """Send images through the clean branch while this lasts."""
    norms = split_norms(model).values()
    for norm in norms:
        norm.is_clean = True
    try:
        yield
    finally:
        for norm in norms:
            norm.is_clean = False

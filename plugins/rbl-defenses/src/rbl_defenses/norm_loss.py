"""Norm loss (Georgiou et al., 2021, arXiv:2103.06583): filters are drawn to length 1, in the place of weight decay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbench_lite import DatasetInfo
from robustbench_lite.training import Around, Context, Recipe


@dataclass(frozen=True, kw_only=True)
class NormLoss(Around):
    """The loss of another method + weight sum_w (1 - ||w||)^2, w the filters of convolutions and the rows of linear layers.

    method: that one. weight: of the norm loss, without which the method keeps its own weight decay.
    """

    method: str = "standard"
    weight: Annotated[float, Field(ge=0)] = 0.01

    def recipe(self, info: DatasetInfo) -> Recipe:
        given = super().recipe(info)
        return replace(given, weight_decay=0.0) if self.weight else given

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        total = super().loss(model, x, y, context)
        if not self.weight:
            return total
        away = 1 - filter_norms(model)
        context.log(from_one=away.abs().mean())
        return total + self.weight * away.square().sum()


def filter_norms(model: nn.Module) -> Tensor:
    """The l2 lengths of all filters of convolutions and rows of linear layers, biases left out."""
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return torch.cat([layer.weight.flatten(1).norm(dim=1) for layer in layers])

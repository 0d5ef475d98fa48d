"""WeightAlign (Shi et al., 2020, arXiv:2010.07160): filters are normalised instead of what they answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rbl_defenses.surgery import plain_convolutions, wrap
from robustbench_lite import DatasetInfo
from robustbench_lite.training import Around

EPS = 1e-5


class Aligned(nn.Module):
    """gain (w - mean(w)) / sqrt(n / 2 var(w) + EPS) for each filter w of n numbers; the gain is learned."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(filters))

    def forward(self, weight: Tensor) -> Tensor:
        filters = weight.flatten(1)
        centred = filters - filters.mean(1, keepdim=True)
        size = (0.5 * centred.square().sum(1, keepdim=True) + EPS).sqrt()  # n var(w) is a sum of squares
        return (self.gain[:, None] * centred / size).view_as(weight)


@dataclass(frozen=True, kw_only=True)
class WeightAlign(Around):
    """Another method, with the filters of all convolutions of its network aligned, and no batch norm.

    method: that one. batch_norm: keep it besides; the authors combine the two as well. Otherwise convolutions have biases.
    """

    method: str = "standard"
    batch_norm: bool = False

    def architecture(self, info: DatasetInfo) -> nn.Module:
        model = super().architecture(info)
        for layer in plain_convolutions(model, self.method):
            parametrize.register_parametrization(layer, "weight", Aligned(layer.out_channels))
            if layer.bias is None and not self.batch_norm:
                layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
        if not self.batch_norm:
            wrap(model, nn.BatchNorm2d, lambda norm: nn.Identity())
        return model

"""Normalisation as a part of the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustbench_lite import DatasetInfo


class Normalise(nn.Module):
    """(x - mean) / std per channel, with the data set's statistics; nothing where it states none."""

    def __init__(self, info: DatasetInfo) -> None:
        super().__init__()
        channels = info.shape[0]
        mean, std = info.mean or (0.0,) * channels, info.std or (1.0,) * channels
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.get_buffer("mean")) / self.get_buffer("std")

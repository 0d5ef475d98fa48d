"""Batch norm with skewness reduction (Ding, Martin and Li, ICPR 2020): a power behind batch norm, before its scale and shift.

A reconstruction: only the abstract was at hand, and the function and its exponent are those that are remembered of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.surgery import wrap
from robustbench_lite import DatasetInfo
from robustbench_lite.training import Around

# Added to the size before the power: that of 0 would have no slope to follow for exponents below 1.
OFFSET = 1e-6


class SkewReduced(nn.Module):
    """weight sign(h) |h|^power + bias, with h a normalised channel, in the place of a batch norm."""

    def __init__(self, norm: nn.BatchNorm2d, power: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, affine=False)
        self.power = power
        self.weight = nn.Parameter(torch.ones(norm.num_features))
        self.bias = nn.Parameter(torch.zeros(norm.num_features))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.norm(x)
        powered = h.sign() * (h.abs() + OFFSET).pow(self.power)
        return self.weight.view(-1, 1, 1) * powered + self.bias.view(-1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class BNSR(Around):
    """Another method, with skewness reduction in every batch norm of its network.

    method: that one. power: the exponent; 1 for plain batch norm.
    """

    method: str = "standard"
    power: Annotated[float, Field(gt=0)] = 1.01

    def architecture(self, info: DatasetInfo) -> nn.Module:
        model = super().architecture(info)
        if self.power != 1:
            wrap(model, nn.BatchNorm2d, lambda norm: SkewReduced(norm, self.power))  # type: ignore[arg-type]
        return model

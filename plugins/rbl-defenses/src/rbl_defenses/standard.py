"""Standard training: what every defense is measured against."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from robustbench_lite.training import Context


@dataclass(frozen=True, kw_only=True)
class Standard(ImageDefense):
    """Minimise the cross-entropy of clean images."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        return F.cross_entropy(model(x), y)

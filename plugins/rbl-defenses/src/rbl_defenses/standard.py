"""Standard training: what every defense is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.architectures import small_cnn
from rbl_defenses.presets import recipe
from robustbench_lite import DatasetInfo, TrainedDefense
from robustbench_lite.training import Context, Recipe


@dataclass(frozen=True, kw_only=True)
class Standard(TrainedDefense):
    """Minimise the cross-entropy of clean images.

    width: channels of the first convolution. epochs, lr: None for the data set's preset.
    """

    width: Annotated[int, Field(ge=1)] = 16
    epochs: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 128
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4

    def architecture(self, info: DatasetInfo) -> nn.Module:
        return small_cnn(info, self.width)

    def recipe(self, info: DatasetInfo) -> Recipe:
        return recipe(
            info,
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            eps=self.radius(info),
        )

    def radius(self, info: DatasetInfo) -> float:
        """The linf radius that it is trained for: none."""
        return 0.0

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        return F.cross_entropy(model(x), y)

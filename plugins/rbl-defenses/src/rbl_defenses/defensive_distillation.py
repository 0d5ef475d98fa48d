"""Defensive distillation (Papernot et al., 2016, arXiv:1511.04508): a negative control, broken by Carlini & Wagner, 2017."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from robustbench_lite import DatasetInfo
from robustbench_lite.training import Context, Recipe

# Two trainings in one, each with a learning rate that falls linearly to 0: the first half makes the teacher.
TWICE = ((0.0, 1.0), (0.5, 0.0), (0.5, 1.0), (1.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class DefensiveDistillation(ImageDefense):
    """Train a network on labels at a temperature T, then the deployed one, of the same kind, on its softened answers at T.

    Both losses are multiplied by T, without which their gradients were T times smaller than those of other methods. Deployed at
    T = 1, its logits are about T times larger than those of other defenses: the softmax saturates, and with it the gradient of
    the cross-entropy, by which it looks robust. Attacks on differences of logits find that it is not. The teacher is trained in
    the first half of the epochs; epochs: None for twice the preset's. temperature: T.
    """

    temperature: Annotated[float, Field(gt=0)] = 100.0

    def recipe(self, info: DatasetInfo) -> Recipe:
        given = super().recipe(info)
        return replace(given, epochs=self.epochs or 2 * given.epochs, schedule="linear", points=TWICE)

    def auxiliary(self, model: nn.Module, info: DatasetInfo) -> nn.Module:
        """The teacher."""
        return self.architecture(info)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        teacher, temperature = context.auxiliary, self.temperature
        if context.epoch < context.recipe.epochs / 2:
            return temperature * F.cross_entropy(teacher(x) / temperature, y)
        teacher.eval()
        with torch.no_grad():
            softened = (teacher(x) / temperature).softmax(1)
        return temperature * F.cross_entropy(model(x) / temperature, softened)

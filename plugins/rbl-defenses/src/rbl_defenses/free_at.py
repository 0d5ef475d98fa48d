"""Free adversarial training (Shafahi et al., 2019, arXiv:1904.12843)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from rbl_defenses.presets import preset
from robustbench_lite import DatasetInfo
from robustbench_lite.training import Context, Recipe, Update


@dataclass(frozen=True, kw_only=True)
class FreeTraining(ImageDefense):
    """Minimise the cross-entropy at x + delta, with one backward pass for both the weights and delta.

    Each batch is shown ``replays`` times; after each, the weights take a step, and delta one of size eps along the sign of its
    gradient, in the ball and the box. delta outlasts the batch: the next one starts with it. epochs: over the data; None for
    the preset's divided by ``replays``, so that there are about as many updates. eps: linf radius; None for the preset's.
    """

    eps: Annotated[float, Field(ge=0)] | None = None
    replays: Annotated[int, Field(ge=1)] = 8

    def radius(self, info: DatasetInfo) -> float:
        return preset(info).eps if self.eps is None else self.eps

    def recipe(self, info: DatasetInfo) -> Recipe:
        epochs = self.epochs or ceil(preset(info).epochs / self.replays)
        return replace(super().recipe(info), epochs=epochs, overfitting=True)

    def train_batch(self, model: nn.Module, x: Tensor, y: Tensor, context: Context, update: Update) -> None:
        for _ in range(self.replays):
            delta = self.perturbation(x, context).requires_grad_()
            update(lambda delta=delta: F.cross_entropy(model(x + delta), y))  # type: ignore[misc]
            gradient = torch.zeros_like(x) if delta.grad is None else delta.grad
            context.state["delta"] = delta.detach() + context.eps * gradient.sign()

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        return F.cross_entropy(model(x + self.perturbation(x, context)), y)

    def perturbation(self, x: Tensor, context: Context) -> Tensor:
        """The present delta, brought into the ball of these images and the box; 0 at first."""
        delta = context.state.get("delta")
        if delta is None or delta.shape != x.shape:
            return torch.zeros_like(x)
        found: Tensor = (x + delta.clamp(-context.eps, context.eps)).clamp(0, 1) - x
        return found

"""What adversarial training with one gradient per batch shares."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from rbl_defenses.presets import preset
from robustbench_lite import DatasetInfo, losses
from robustbench_lite.training import Context, Recipe, craft


@dataclass(frozen=True, kw_only=True)
class SingleStep(ImageDefense):
    """Minimise the cross-entropy at a point that one step along the sign of the gradient leads to.

    Training is watched for catastrophic overfitting: see ``Recipe.overfitting``. The learning rate rises to its peak at half
    time and falls back to 0, as in the papers on such methods.

    eps: linf radius; None for the preset's. alpha: length of the step, in units of eps. craft_mode: of batch norm while
    crafting. lr: None for twice the preset's.
    """

    eps: Annotated[float, Field(ge=0)] | None = None
    alpha: Annotated[float, Field(gt=0)] = 1.0
    craft_mode: Literal["eval", "train"] = "train"

    def radius(self, info: DatasetInfo) -> float:
        return preset(info).eps if self.eps is None else self.eps

    def recipe(self, info: DatasetInfo) -> Recipe:
        peak = self.lr or 2 * preset(info).lr
        return replace(super().recipe(info), lr=peak, schedule="linear", overfitting=True)

    @abstractmethod
    def point(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        """Where the loss is taken: x (n, C, H, W) with the perturbation, detached."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        x_adv = context.once("x_adv", lambda: self.point(model, x, y, context))
        return F.cross_entropy(model(x_adv), y)

    def step(
        self, model: nn.Module, x: Tensor, y: Tensor, context: Context, start: Literal["uniform", "zero"] | Tensor
    ) -> Tensor:
        """One step of ``alpha`` from a start, brought back into the ball and the box."""
        eps = context.eps
        return craft(
            model,
            x,
            lambda z: losses.cross_entropy(z, y),
            eps=eps,
            step=self.alpha * eps,
            steps=1,
            start=start,
            mode=self.craft_mode,
        )

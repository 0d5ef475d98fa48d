"""Multi steepest descent: adversarial training against a union of balls (Maini et al., 2020, arXiv:1909.04068)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from rbl_defenses.presets import preset
from rbl_defenses.steepest import Norm, ascend, worst
from robustbench_lite import DatasetInfo, losses
from robustbench_lite.training import Context, Recipe, in_mode

# Points of the learning rate that the authors use.
POINTS = ((0.0, 0.0), (0.4, 1.0), (0.8, 0.05), (1.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class MSD(ImageDefense):
    """Minimise the cross-entropy at the worst point of the union of an linf, an l2 and an l1 ball around x.

    union: ``msd``, one ascent whose every step takes the best of the three steps; ``max``, the worst of three ascents; ``avg``,
    the mean loss at the points of three ascents (the authors descend on the three in turn). eps, l2, l1: the radii; None for
    the preset's. steps: of the ascent; None for 8 on digits and 50 elsewhere. relative_step: their length in each norm, in
    units of its radius; None for 1/4 on digits and 1/10 elsewhere. craft_mode: of batch norm while crafting. Training is
    watched in linf.
    """

    union: Literal["msd", "max", "avg"] = "msd"
    eps: Annotated[float, Field(gt=0)] | None = None
    l2: Annotated[float, Field(gt=0)] | None = None
    l1: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    relative_step: Annotated[float, Field(gt=0)] | None = None
    craft_mode: Literal["eval", "train"] = "eval"

    def radius(self, info: DatasetInfo) -> float:
        return self.eps or preset(info).eps

    def recipe(self, info: DatasetInfo) -> Recipe:
        return replace(super().recipe(info), schedule="linear", points=POINTS)

    def radii(self, info: DatasetInfo, share: float = 1.0) -> dict[Norm, float]:
        """The radii of the three balls, times a share of the ramp."""
        given = preset(info)
        return {"linf": share * self.radius(info), "l2": share * (self.l2 or given.l2), "l1": share * (self.l1 or given.l1)}

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        points = context.once("points", lambda: self.points(model, x, y, context))
        return torch.stack([F.cross_entropy(model(x_adv), y) for x_adv in points]).mean()

    def points(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> list[Tensor]:
        """The images that are trained on: one batch of them, three for ``avg``."""
        digits = context.info.name == "digits"
        radii = self.radii(context.info, context.eps / context.recipe.eps)
        together: list[dict[Norm, float]] = [radii] if self.union == "msd" else [{norm: eps} for norm, eps in radii.items()]

        def loss(z: Tensor) -> Tensor:
            return losses.cross_entropy(z, y)

        found = [
            ascend(
                model,
                x,
                loss,
                radii=balls,
                relative_step=self.relative_step or (0.25 if digits else 0.1),
                steps=self.steps or (8 if digits else 50),
                mode=self.craft_mode,
            )
            for balls in together
        ]
        if self.union != "max":
            return found
        with in_mode(model, self.craft_mode):
            return [worst(model, found, loss)[0]]

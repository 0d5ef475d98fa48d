"""Guided adversarial training (Sriramanan et al., 2020, arXiv:2011.14969)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.presets import preset
from rbl_defenses.score import squared
from rbl_defenses.single_step import SingleStep
from robustbench_lite import DatasetInfo, losses
from robustbench_lite.training import Context, Recipe, craft, in_mode

# Shares of the training after which the learning rate falls to a tenth, the second of which also raises the weight.
MILESTONES = (0.7, 0.85)


@dataclass(frozen=True, kw_only=True)
class GuidedTraining(SingleStep):
    """Minimise CE(f(x), y) + w ||p(x) - p(x')||^2, where x' is one step away from x + (eps / 2) times random signs.

    The step climbs the cross-entropy, in every second batch with w ||p(x') - p(x)||^2 added. There is no loss of labels at x'.
    The learning rate falls to a tenth after 70 and after 85 % of the training; lr: None for the preset's. weight: w, multiplied
    by ``late`` in the last 15 %.
    """

    batch_size: Annotated[int, Field(ge=1)] = 64
    craft_mode: Literal["eval", "train"] = "eval"
    weight: Annotated[float, Field(ge=0)] = 10.0
    late: Annotated[float, Field(ge=0)] = 4.0

    def recipe(self, info: DatasetInfo) -> Recipe:
        lr = self.lr or preset(info).lr
        return replace(super().recipe(info), lr=lr, schedule="step", milestones=MILESTONES)

    def point(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        eps, guided = context.eps, self.weight_now(context) if context.step % 2 else 0.0
        with torch.no_grad(), in_mode(model, self.craft_mode):
            clean = model(x).softmax(1)
        return craft(
            model,
            x,
            lambda z: losses.cross_entropy(z, y) + guided * squared(z.softmax(1), clean),
            eps=eps,
            step=self.alpha * eps,
            steps=1,
            start=x + 0.5 * eps * torch.empty_like(x).bernoulli_().mul_(2).sub_(1),
            mode=self.craft_mode,
        )

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        weight, logits = self.weight_now(context), model(x)
        clean = F.cross_entropy(logits, y)
        if not weight:
            return clean
        x_adv = context.once("x_adv", lambda: self.point(model, x, y, context))
        apart = squared(logits.softmax(1), model(x_adv).softmax(1)).mean()
        context.log(apart=apart)
        return clean + weight * apart

    def weight_now(self, context: Context) -> float:
        """The weight, raised towards the end."""
        return self.weight * (self.late if context.epoch >= MILESTONES[1] * context.recipe.epochs else 1.0)

"""PGD adversarial training (Madry et al., 2018, arXiv:1706.06083)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.presets import preset
from rbl_defenses.standard import Standard
from robustbench_lite import DatasetInfo, losses
from robustbench_lite.training import Context, craft


@dataclass(frozen=True, kw_only=True)
class AdversariallyTrained(Standard):
    """What methods with an inner linf attack share.

    width: channels of the first convolution. epochs, lr, eps, steps, step: None for the data set's preset. eps: radius.
    steps, step: of the inner attack; ``step`` is absolute.
    """

    eps: Annotated[float, Field(ge=0)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    step: Annotated[float, Field(gt=0)] | None = None

    def radius(self, info: DatasetInfo) -> float:
        return preset(info).eps if self.eps is None else self.eps

    def inner(self, context: Context) -> dict[str, float | int]:
        """eps, step and steps of the inner attack now; the step shrinks with the ramped radius."""
        given = preset(context.info)
        full = context.recipe.eps
        step = given.relative_step * full if self.step is None else self.step
        share = context.eps / full if full else 0.0
        return {"eps": context.eps, "step": step * share, "steps": self.steps or given.steps}


@dataclass(frozen=True, kw_only=True)
class PGDTraining(AdversariallyTrained):
    """Minimise the cross-entropy at the points that PGD finds from a uniform start.

    width: channels of the first convolution. epochs, lr, eps, steps, step: None for the data set's preset. eps: linf radius.
    steps, step: of the inner PGD; ``step`` is absolute. mix: weight of the clean loss, 0 for adversarial examples only.
    """

    mix: Annotated[float, Field(ge=0, le=1)] = 0.0

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        inner = self.inner(context)
        x_adv = context.once(
            "x_adv",
            lambda: craft(
                model,
                x,
                lambda z: losses.cross_entropy(z, y),
                eps=inner["eps"],
                step=inner["step"],
                steps=int(inner["steps"]),
            ),
        )
        adversarial = F.cross_entropy(model(x_adv), y)
        if not self.mix:
            return adversarial
        return self.mix * F.cross_entropy(model(x), y) + (1 - self.mix) * adversarial

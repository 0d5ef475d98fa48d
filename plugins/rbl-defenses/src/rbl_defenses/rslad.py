"""Robust soft label adversarial distillation, RSLAD (Zi et al., 2021, arXiv:2108.07969)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.distillation import taught
from rbl_defenses.image_defense import AdversariallyTrained
from robustbench_lite import losses
from robustbench_lite.training import Context


@dataclass(frozen=True, kw_only=True)
class RSLAD(AdversariallyTrained):
    """Minimise mix KL(t || p(x')) + (1 - mix) KL(t || p(x)), where t is the teacher's answer to x, and x' maximises KL(t ||
    p(x')).

    No label is used. Divergences are means over the batch; the authors' program also divides them by the number of classes.
    teacher: a robust defense. mix: weight of the adversarial examples.
    """

    teacher: str = "trades"
    mix: Annotated[float, Field(ge=0, le=1)] = 5 / 6
    weight_decay: Annotated[float, Field(ge=0)] = 2e-4

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        teacher = taught(x, context)
        clean = losses.divergence(model(x), teacher).mean()
        if not self.mix:
            return clean
        x_adv = self.adversary(model, x, lambda z: losses.divergence(z, teacher), context, start="gaussian")
        return self.mix * losses.divergence(model(x_adv), teacher).mean() + (1 - self.mix) * clean

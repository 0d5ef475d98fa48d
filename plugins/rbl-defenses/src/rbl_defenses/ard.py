"""Adversarially robust distillation, ARD (Goldblum et al., 2020, arXiv:1905.09747)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.distillation import mixed, taught
from rbl_defenses.image_defense import AdversariallyTrained
from robustbench_lite import DatasetInfo, losses
from robustbench_lite.training import Context


@dataclass(frozen=True, kw_only=True)
class RobustDistillation(AdversariallyTrained):
    """Minimise (1 - mix) CE(f(x), y) + mix T^2 KL(teacher(x) || f(x')), where PGD on the student finds x'.

    The divergence is the mean over the batch; the authors' program also divides it by the number of classes. teacher: a robust
    defense. mix: weight of the teacher against the labels. temperature: T; None for 5 on digits and 30 elsewhere.
    """

    teacher: str = "trades"
    mix: Annotated[float, Field(ge=0, le=1)] = 1.0
    temperature: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 2e-4
    craft_mode: Literal["eval", "train"] = "train"

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        x_adv = self.adversary(model, x, lambda z: losses.cross_entropy(z, y), context)
        student = model(x_adv)
        clean = model(x) if self.mix < 1 else student
        temperature = self.temperature or softness(context.info)
        return mixed(clean, student, y, taught(x, context), mix=self.mix, temperature=temperature)


def softness(info: DatasetInfo) -> float:
    """The temperature of a data set."""
    return 5.0 if info.name == "digits" else 30.0

"""Knowledge distillation: the divergence from a teacher, and the plain method (Hinton et al., 2015, arXiv:1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from robustbench_lite import losses
from robustbench_lite.training import Context


@dataclass(frozen=True, kw_only=True)
class Distilled(ImageDefense):
    """Minimise (1 - mix) CE(f(x), y) + mix T^2 KL(teacher || student), both softened by the temperature T. No defense: a
    control.

    teacher: the defense that is distilled. mix: weight of the teacher against the labels. temperature: T; T^2 keeps the size of
    the gradient.
    """

    teacher: str = "standard"
    mix: Annotated[float, Field(ge=0, le=1)] = 0.9
    temperature: Annotated[float, Field(gt=0)] = 4.0

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        logits = model(x)
        return mixed(logits, logits, y, taught(x, context), mix=self.mix, temperature=self.temperature)


def taught(x: Tensor, context: Context) -> Tensor:
    """The teacher's logits on clean images (n, K), asked once per batch."""

    def ask() -> Tensor:
        with torch.no_grad():
            logits: Tensor = context.teacher(x)
        return logits

    return context.once("taught", ask)


def mixed(clean: Tensor, student: Tensor, y: Tensor, teacher: Tensor, *, mix: float, temperature: float) -> Tensor:
    """(1 - mix) CE(clean, y) + mix T^2 KL(teacher || student), from logits (n, K); the mean over the batch."""
    divergence = losses.divergence(student / temperature, teacher / temperature).mean()
    return (1 - mix) * F.cross_entropy(clean, y) + mix * temperature**2 * divergence

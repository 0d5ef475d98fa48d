"""Adaptive noise injection (ICPR 2020): a deterministic teacher becomes a stochastic student.

A reconstruction: of "Adaptive noise injection for training stochastic student networks from deterministic teachers" only the
abstract was at hand, so where the noise is added, and that its scale is the deviation of each channel, are choices made here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from rbl_defenses.presets import preset
from rbl_defenses.surgery import Wrapped, plain_names, wrap
from robustbench_lite import DatasetInfo, UsageError, randn_like
from robustbench_lite.training import Context, Recipe

# Weight of a batch in the running average of deviations, as in batch norm.
MOMENTUM = 0.1


class AdaptiveNoise(Wrapped):
    """Gaussian noise on what a batch norm puts out: ``scale`` times the deviation of the channel, through which no gradient
    flows. In training that is the deviation over batch and positions; otherwise its running average.
    """

    def __init__(self, wrapped: nn.Module, scale: float) -> None:
        super().__init__(wrapped)
        self.scale = scale
        self.register_buffer("deviation", torch.ones_like(wrapped.get_parameter("weight")))

    def forward(self, x: Tensor) -> Tensor:
        plain: Tensor = self.wrapped(x)
        deviation = self.get_buffer("deviation")
        if self.training:
            with torch.no_grad():
                now = plain.transpose(0, 1).flatten(1).std(1)
                deviation.lerp_(now, MOMENTUM)
                deviation = now
        return plain + self.scale * deviation.view(-1, 1, 1) * randn_like(plain)


@dataclass(frozen=True, kw_only=True)
class ANI(ImageDefense):
    """Start from a trained teacher of the same network, add noise behind every batch norm, and train on for a while.

    epochs: None for 30 on digits and a tenth of the preset's elsewhere. lr: peak learning rate; None for 0.02 on digits and a
    tenth of the preset's elsewhere. teacher: a defense without randomness of its own. scale: of the noise, relative to the
    deviation of each channel. distillation: weight of the divergence from the teacher's prediction, 0 for the labels alone.
    temperature: of both predictions in that.
    """

    teacher: str = "standard"
    scale: Annotated[float, Field(ge=0)] = 0.5
    distillation: Annotated[float, Field(ge=0)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 4.0

    def architecture(self, info: DatasetInfo) -> nn.Module:
        model = super().architecture(info)
        wrap(model, nn.BatchNorm2d, lambda norm: AdaptiveNoise(norm, self.scale))
        return model

    def recipe(self, info: DatasetInfo) -> Recipe:
        given = preset(info)
        epochs, lr = (30, 0.02) if info.name == "digits" else (max(1, given.epochs // 10), given.lr / 10)
        return replace(super().recipe(info), epochs=self.epochs or epochs, lr=self.lr or lr)

    def begin_epoch(self, model: nn.Module, context: Context) -> None:
        if context.epoch == 0:
            copy_weights(context.teacher, model, self.teacher)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        logits = model(x)
        labels = F.cross_entropy(logits, y)
        if not self.distillation:
            return labels
        with torch.no_grad():
            expected = (context.teacher(x) / self.temperature).log_softmax(1)
        student = (logits / self.temperature).log_softmax(1)
        divergence = F.kl_div(student, expected, reduction="batchmean", log_target=True)
        return labels + self.distillation * self.temperature**2 * divergence


@torch.no_grad()
def copy_weights(teacher: nn.Module, student: nn.Module, name: str) -> None:
    """Give a student with ``Wrapped`` layers the weights of a teacher without. Raises UsageError where they do not fit.

    name: of the teacher, for the error.
    """
    known, own = teacher.state_dict(), student.state_dict()
    pairs = {ours: theirs for ours, theirs in plain_names(own).items() if theirs in known}
    if len(pairs) < len(known) or any(own[ours].shape != known[theirs].shape for ours, theirs in pairs.items()):
        raise UsageError(
            f"the weights of {name} do not fit the student's network",
            hint="give both the same network and width, as in teacher=standard[width=8], width=8",
        )
    student.load_state_dict(own | {ours: known[theirs] for ours, theirs in pairs.items()})

"""PGD adversarial training (Madry et al., 2018, arXiv:1706.06083), with the variants that regularise it.

Label smoothing, label noise and rotation as Stutz et al., 2021 (arXiv:2104.04448) compare them; weight decay, averaged weights
and early stopping are parameters of every defense here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.architectures import feature_size, with_features
from rbl_defenses.image_defense import AdversariallyTrained
from robustbench_lite import DatasetInfo, UsageError, losses
from robustbench_lite.training import Context, in_mode

TURNS = 4  # by multiples of 90 degrees


@dataclass(frozen=True, kw_only=True)
class PGDTraining(AdversariallyTrained):
    """Minimise the cross-entropy at the points that PGD finds from a uniform start.

    mix: weight of the clean loss, 0 for adversarial examples only. target: what the inner attack leads away from; the model's
    own ``prediction`` leaks no label into the example. label_smoothing: share of the target that the outer loss spreads evenly
    over the wrong classes. label_noise: share of each batch whose label is drawn anew for the outer loss. rotation: weight of
    telling by how many quarter turns an image was rotated, under attack too: the second half of each batch is for that alone.
    """

    mix: Annotated[float, Field(ge=0, le=1)] = 0.0
    target: Literal["label", "prediction"] = "label"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    rotation: Annotated[float, Field(ge=0)] = 0.0

    def auxiliary(self, model: nn.Module, info: DatasetInfo) -> nn.Module | None:
        if not self.rotation:
            return None
        if info.shape[1] != info.shape[2]:
            raise UsageError(f"rotation wants square images, not {info.shape[1]}x{info.shape[2]}", hint="rotation=0")
        return nn.Linear(feature_size(model), TURNS)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        if not self.rotation:
            return self.classification(model, x, y, context)
        half = len(x) // 2
        rotation = self.rotation_loss(model, x[half:], context)
        return self.classification(model, x[:half], y[:half], context) + self.rotation * rotation

    def classification(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        """The outer loss: adversarial, and clean as far as ``mix`` says."""
        away = y if self.target == "label" else _predicted(model, x)
        x_adv = self.adversary(model, x, lambda z: losses.cross_entropy(z, away), context)
        labels = context.once("labels", lambda: self.noisy(y, context.info.num_classes)) if self.label_noise else y
        adversarial = self.outer(model(x_adv), labels)
        if not self.mix:
            return adversarial
        return self.mix * self.outer(model(x), labels) + (1 - self.mix) * adversarial

    def outer(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with smoothed labels: 1 - s for the label, and s shared by the other classes."""
        classes = logits.shape[1]
        # torch spreads its share over all classes, the right one among them.
        return F.cross_entropy(logits, labels, label_smoothing=min(1.0, self.label_smoothing * classes / (classes - 1)))

    def noisy(self, y: Tensor, classes: int) -> Tensor:
        """Labels of which a share is drawn anew, from all classes."""
        chosen = torch.randperm(len(y))[: round(self.label_noise * len(y))].to(y.device)
        return y.scatter(0, chosen, torch.randint(classes, (len(chosen),)).to(y.device))

    def rotation_loss(self, model: nn.Module, x: Tensor, context: Context) -> Tensor:
        """Cross-entropy of telling quarter turns apart, at points that an attack on that finds."""
        turns = context.once("turns", lambda: torch.randint(TURNS, (len(x),)).to(x.device))
        turned = torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(x, turns, strict=True)])
        told = Rotated(model, context.auxiliary)
        x_adv = self.adversary(told, turned, lambda z: losses.cross_entropy(z, turns), context, name="turned_adv")
        found = F.cross_entropy(told(x_adv), turns)
        context.log(rotation=found)
        return found


class Rotated(nn.Module):
    """Logits of the quarter turn (n, 4), from the features of a network."""

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(with_features(self.model, x)[1])
        return logits


def _predicted(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), in_mode(model, "eval"):
        predicted: Tensor = model(x).argmax(1)
    return predicted

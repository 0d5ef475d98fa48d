"""AR-AT (Waseda et al., ICLR 2025, arXiv:2402.14648): adversarial training with representations aligned in one direction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import AdversariallyTrained
from rbl_defenses.resnets import ResNet
from rbl_defenses.split_norm import SplitNorm, clean_branch, split, split_norms
from robustbench_lite import DatasetInfo, losses
from robustbench_lite.training import Context, accuracy, in_mode

# Training images on which the clean branch is measured before each epoch.
MEASURED = 1000


@dataclass(frozen=True, kw_only=True)
class ARAT(AdversariallyTrained):
    """acc CE(f(x'), y) + (1 - acc) CE(f(x), y) + alignment R: clean images through batch norms of their own.

    R is the mean, over the last layers, of 1 - cos(predictor(h(x')), h(x)), where no gradient flows into h(x). acc is the
    clean branch's accuracy on training images at the start of the epoch. Deployed is the adversarial branch, for all images.
    x' is crafted in training mode, as the authors do, but around x: their own attack overwrites x with noise.

    alignment: weight of R; None for 10 on digits, 100 for wide residual networks and 30 for others.
    """

    alignment: Annotated[float, Field(ge=0)] | None = None
    craft_mode: Literal["eval", "train"] = "train"

    def architecture(self, info: DatasetInfo) -> nn.Module:
        model = super().architecture(info)
        split(model)
        return model

    def auxiliary(self, model: nn.Module, info: DatasetInfo) -> nn.Module:
        return nn.ModuleList([_predictor(channels(norm)) for norm in aligned(model)])

    def begin_epoch(self, model: nn.Module, context: Context) -> None:
        with clean_branch(model), in_mode(model, "eval"):
            context.state["clean_accuracy"] = accuracy(model, *context.examples(MEASURED))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        acc, weight = context.state["clean_accuracy"], self._weight(context.info)
        x_adv = self.adversary(model, x, lambda z: losses.cross_entropy(z, y), context)
        with clean_branch(model), features(aligned(model)) as clean:
            clean_loss = F.cross_entropy(model(x), y)
        with features(aligned(model)) as adversarial:
            adversarial_loss = F.cross_entropy(model(x_adv), y)
        total: Tensor = acc * adversarial_loss + (1 - acc) * clean_loss
        if weight:
            distance = asymmetric_distance(context.auxiliary, adversarial, clean)
            context.log(alignment=distance, clean_accuracy=acc)
            total = total + weight * distance
        return total

    def _weight(self, info: DatasetInfo) -> float:
        if self.alignment is not None:
            return self.alignment
        if info.name == "digits":
            return 10.0
        return 100.0 if self.network.startswith("wide") else 30.0


def asymmetric_distance(predictors: nn.Module, adversarial: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
    """Mean over layers and images of 1 - cos(predictor(adversarial), clean); its gradient does not reach ``clean``."""
    pairs = zip(predictors.children(), adversarial, clean, strict=True)
    return torch.stack([1 - F.cosine_similarity(p(a), c.detach(), dim=1).mean() for p, a, c in pairs]).mean()


def aligned(model: nn.Module) -> list[SplitNorm]:
    """The batch norms whose outputs are aligned: of a residual network those of the last stage and behind it, shortcuts
    excepted; of the small network all.
    """
    found = split_norms(model)
    if isinstance(model, ResNet):
        last = (f"stages.{len(model.stages) - 1}.", "last.")
        found = {name: norm for name, norm in found.items() if name.startswith(last) and "shortcut" not in name}
    return list(found.values())


@contextmanager
def features(norms: Sequence[SplitNorm]) -> Iterator[list[Tensor]]:
    """What some norms put out while this lasts, after ReLU and the mean over positions: (n, channels) each."""
    seen: list[Tensor] = []
    handles = [n.register_forward_hook(lambda module, inputs, output: seen.append(output.relu().mean((2, 3)))) for n in norms]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def channels(norm: SplitNorm) -> int:
    """How many channels it normalises."""
    return len(norm.wrapped.get_parameter("weight"))


def _predictor(size: int) -> nn.Module:
    hidden = max(8, size // 4)
    return nn.Sequential(nn.Linear(size, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, size))

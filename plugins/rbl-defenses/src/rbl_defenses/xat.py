"""xAT and xVAT (Yang & Ji, 2019, arXiv:1912.01810): training against masks that images are multiplied by.

In the authors' code the generator of xAT is in no optimiser, and that of xVAT has a learning rate at which it does not move.
Here both are trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses import hard_concrete
from rbl_defenses.image_defense import ImageDefense
from robustbench_lite import DatasetInfo, losses
from robustbench_lite.training import Context, Recipe, parameter_groups


@dataclass(frozen=True, kw_only=True)
class MaskTraining(ImageDefense):
    """What both share: a generator of masks m, which raises weight D + kept L0(m), while the model lowers its loss and D.

    D is the distance between the answers at x and at x m.

    lr: peak learning rate of the network; None for 0.003. kept: weight of the expected share of pixels that are not 0; None
    for what keeps some 85 % of them on digits (3, in ``xvat`` 10), 1 on other images of one channel, 3 on those of more.
    layers: of the generator, 3x3 convolutions to one channel; None for 2 on images of one channel and 1 on others.
    generator_lr: peak learning rate of the generator.
    """

    kept_on_digits: ClassVar[float] = 3.0

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    kept: Annotated[float, Field(ge=0)] | None = None
    layers: Annotated[int, Field(ge=1)] | None = None
    generator_lr: Annotated[float, Field(ge=0)] = 0.002

    def recipe(self, info: DatasetInfo) -> Recipe:
        return replace(super().recipe(info), optimiser="adam", lr=self._lr)

    @property
    def _lr(self) -> float:
        return self.lr or 0.003

    def auxiliary(self, model: nn.Module, info: DatasetInfo) -> nn.Module:
        return generator(info.shape[0], self.layers or (2 if info.shape[0] == 1 else 1))

    def parameter_groups(self, model: nn.Module, auxiliary: nn.Module | None) -> Iterable[dict[str, Any]]:
        scale = {"lr_scale": self.generator_lr / self._lr}
        return parameter_groups(model) + ([] if auxiliary is None else [parameter_groups(auxiliary)[0] | scale])

    def masked(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The product of x and a mask (n, 1, H, W) that the generator draws, and what the pixels that it keeps add to the loss.

        Gradients of both reach the generator with the opposite sign: what the loss lowers, it raises.
        """
        logits: Tensor = Reversed.apply(context.auxiliary(x))  # type: ignore[no-untyped-call]
        mask, share = hard_concrete.draw(logits), hard_concrete.kept(logits).mean()
        context.log(mask=mask.mean(), kept=(mask > 0).float().mean())
        return x * mask, self._kept(context.info) * share

    def _kept(self, info: DatasetInfo) -> float:
        if self.kept is not None:
            return self.kept
        if info.name == "digits":
            return self.kept_on_digits
        return 1.0 if info.shape[0] == 1 else 3.0


@dataclass(frozen=True, kw_only=True)
class XAT(MaskTraining):
    """(1 - weight) CE(f(x), y) + weight CE(f(x m), y).

    weight: of the loss at x m.
    """

    weight: Annotated[float, Field(ge=0, le=1)] = 0.5

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        clean = F.cross_entropy(model(x), y)
        if not self.weight:
            return clean
        masked, kept = self.masked(x, context)
        return (1 - self.weight) * clean + self.weight * F.cross_entropy(model(masked), y) + kept


@dataclass(frozen=True, kw_only=True)
class XVAT(MaskTraining):
    """CE(f(x), y) + weight KL(p(x m) || p(x)), without a gradient through p(x).

    Masked images leave the running statistics of batch norm as they are.

    weight: of the divergence.
    """

    kept_on_digits: ClassVar[float] = 10.0

    weight: Annotated[float, Field(ge=0)] = 1.0

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        logits = model(x)
        clean = F.cross_entropy(logits, y)
        if not self.weight:
            return clean
        masked, kept = self.masked(x, context)
        with fixed_statistics(model):
            changed = model(masked)
        return clean + self.weight * losses.divergence(logits.detach(), changed).mean() + kept


class Reversed(torch.autograd.Function):
    """The identity, with the gradient negated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


def generator(channels: int, layers: int) -> nn.Sequential:
    """The logits of a mask (n, 1, H, W) for images (n, channels, H, W)."""
    found = nn.Sequential()
    for inputs in (channels, *[1] * (layers - 1)):
        if len(found):
            found.append(nn.ReLU())
        found.append(nn.Conv2d(inputs, 1, 3, padding=1, padding_mode="replicate"))
    return found


@contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Passes in training mode leave the running statistics of batch norm as they are."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

"""Parametric noise injection (He et al., 2019, arXiv:1811.09310): gaussian noise on weights, of a magnitude that is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import AdversariallyTrained
from rbl_defenses.surgery import wrap
from rbl_defenses.weight_noise import LAYERS, NoisyLayer
from robustbench_lite import DatasetInfo, losses
from robustbench_lite.training import Context, in_mode

Granularity = Literal["layer", "channel", "element"]


class WhiteNoise(NoisyLayer):
    """Noise of deviation ``alpha`` times that of the layer's weights, through which no gradient flows.

    granularity: one alpha for the ``layer``, for each output ``channel``, or for each ``element`` of the weights.
    """

    no_decay = ("alpha",)

    def __init__(self, wrapped: nn.Module, granularity: Granularity, alpha: float) -> None:
        super().__init__(wrapped)
        first, *rest = self.weight.shape
        ones = [1] * len(rest)
        shape = {"layer": (1, *ones), "channel": (first, *ones), "element": (first, *rest)}[granularity]
        self.alpha = nn.Parameter(torch.full(shape, alpha))

    def deviation(self) -> Tensor:
        return self.alpha * self.weight.detach().std()


@dataclass(frozen=True, kw_only=True)
class PNI(AdversariallyTrained):
    """Half the loss at x and half at x', with noise on all weights throughout: in crafting, in training and at test time.

    x' leads away from what the model predicts at x, which is not always the label. granularity: what has a magnitude of its
    own; None for ``channel`` on digits and ``layer`` elsewhere. alpha: the magnitudes at the start. delay: epochs of clean
    training before the adversarial ones; None for 3 on digits and 5 elsewhere.
    """

    weight_decay: Annotated[float, Field(ge=0)] = 3e-4
    granularity: Granularity | None = None
    alpha: Annotated[float, Field(ge=0)] = 0.25
    delay: Annotated[int, Field(ge=0)] | None = None

    def architecture(self, info: DatasetInfo) -> nn.Module:
        model = super().architecture(info)
        granularity: Granularity = self.granularity or ("channel" if info.name == "digits" else "layer")
        wrap(model, LAYERS, lambda layer: WhiteNoise(layer, granularity, self.alpha))
        return model

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        clean = F.cross_entropy(model(x), y)
        if context.epoch < self._delay(context.info):
            return clean
        with torch.no_grad(), in_mode(model, self.craft_mode):
            predicted = model(x).argmax(1)
        x_adv = self.adversary(model, x, lambda z: losses.cross_entropy(z, predicted), context)
        return 0.5 * clean + 0.5 * F.cross_entropy(model(x_adv), y)

    def _delay(self, info: DatasetInfo) -> int:
        if self.delay is None:
            return 3 if info.name == "digits" else 5
        return self.delay

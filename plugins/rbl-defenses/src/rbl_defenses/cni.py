"""Coloured noise injection (Zheltonozhskii et al., 2020, arXiv:2003.02188): noise on weights with a learned covariance.

The authors' code for this paper was not found. Shapes and starting values are those of a later repository of some of them
(yanemcovsky/SIAM, MIT), where convolutions have coloured noise, and linear layers white noise of one magnitude per weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import AdversariallyTrained
from rbl_defenses.pni import WhiteNoise
from rbl_defenses.surgery import wrap
from rbl_defenses.weight_noise import NoisyLayer
from robustbench_lite import DatasetInfo, losses
from robustbench_lite.training import Context


class ColouredNoise(NoisyLayer):
    """Noise of covariance diag(std(w) |variance|) + common common^T: a diagonal and ``rank`` factors.

    It starts with all factors equal; what is drawn for each tells them apart. The standard deviation of the weights is in the
    gradient.
    """

    no_decay = ("variance", "covariance")

    def __init__(self, wrapped: nn.Module, rank: int, variance: float, covariance: float) -> None:
        super().__init__(wrapped)
        self.variance = nn.Parameter(torch.full_like(self.weight, variance))
        self.covariance = nn.Parameter(self.weight.new_full((rank, *self.weight.shape), covariance))

    def deviation(self) -> Tensor:
        # The root has no slope at 0; below the least normal number this has slope 0.
        own = self.weight.std() * self.variance.abs()
        return own.clamp_min(torch.finfo(own.dtype).tiny).sqrt()

    def factors(self) -> Tensor:
        return self.covariance


@dataclass(frozen=True, kw_only=True)
class CNI(AdversariallyTrained):
    """The loss at x and at x', with noise on all weights throughout: in crafting, in training and at test time.

    mix: weight of the loss at x'. rank: how many factors the weights of a convolution have in common. variance: of each of
    its weights by itself at the start, to be multiplied by the deviation of the layer's weights; None for 0.00625 on digits
    and 0.0625 elsewhere. covariance: entries of the factors at the start. alpha: magnitudes of the white noise in linear layers
    at the start. noise_lr: learning rate of all these, as a multiple of the network's; in the authors' code it is 1, which on
    digits lets the noise grow until single draws are wrong on clean images, too.
    """

    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    mix: Annotated[float, Field(ge=0, le=1)] = 0.5
    rank: Annotated[int, Field(ge=0)] = 5
    variance: Annotated[float, Field(ge=0)] | None = None
    covariance: Annotated[float, Field(ge=0)] = 0.01
    alpha: Annotated[float, Field(ge=0)] = 0.25
    noise_lr: Annotated[float, Field(ge=0)] = 0.1

    def architecture(self, info: DatasetInfo) -> nn.Module:
        model = super().architecture(info)
        published = 0.00625 if info.name == "digits" else 0.0625
        variance = published if self.variance is None else self.variance
        wrap(model, nn.Conv2d, lambda layer: ColouredNoise(layer, self.rank, variance, self.covariance))
        wrap(model, nn.Linear, lambda layer: WhiteNoise(layer, "element", self.alpha))
        return model

    def parameter_groups(self, model: nn.Module, auxiliary: nn.Module | None) -> Iterable[dict[str, Any]]:
        network, noise = super().parameter_groups(model, auxiliary)
        return [network, noise | {"lr_scale": self.noise_lr}]

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        x_adv = self.adversary(model, x, lambda z: losses.cross_entropy(z, y), context)
        clean, adversarial = F.cross_entropy(model(x), y), F.cross_entropy(model(x_adv), y)
        return (1 - self.mix) * clean + self.mix * adversarial

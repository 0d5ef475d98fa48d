"""Boundary optimised samples (BoS; Marson, Li and Maki, ICPR 2020): low confidence just outside of the data.

A reconstruction: the loss that makes the samples is published in words only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from robustbench_lite.training import Context, in_mode


@dataclass(frozen=True, kw_only=True)
class BoS(ImageDefense):
    """Minimise the cross-entropy of the data plus ``weight`` times KL(u || p(x_b)): u uniform, x_b boundary samples.

    A boundary sample starts at x + N(0, noise^2) and takes ``steps`` sign steps of size ``step`` down
    (max_k p_k(x_b) - level)^2 - repulsion ||x_b - x||^2, towards the surface on which the confidence is ``level``, and away
    from the data. warmup: share of the epochs before the samples come in.

    It makes a classifier for detectors to stand in front of: ``max-softmax[base=bos]`` refuses where it is not confident.
    """

    weight: Annotated[float, Field(ge=0)] = 0.5
    level: Annotated[float, Field(gt=0, lt=1)] = 0.5
    repulsion: Annotated[float, Field(ge=0)] = 0.01
    noise: Annotated[float, Field(gt=0)] = 0.3
    steps: Annotated[int, Field(ge=0)] = 5
    step: Annotated[float, Field(gt=0)] = 0.05
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        if self.weight == 0 or context.epoch < self.warmup * context.recipe.epochs:
            return F.cross_entropy(model(x), y)
        samples = context.once("samples", lambda: self.samples(model, x))
        # One batch of both, so that batch norm in training sees what it will see in use.
        logits, beyond = model(torch.cat([x, samples])).split(len(x))
        return F.cross_entropy(logits, y) + self.weight * from_uniform(beyond).mean()

    def samples(self, model: nn.Module, x: Tensor) -> Tensor:
        """Boundary samples of images (n, C, H, W), in the box. The model's mode and gradients are left as they are."""
        found = (x + self.noise * torch.randn_like(x)).clamp(0, 1)
        with in_mode(model, "eval"):
            for _ in range(self.steps):
                leaf = found.detach().requires_grad_()
                confidence = model(leaf).softmax(1).amax(1)
                height = (confidence - self.level).square() - self.repulsion * (leaf - x).flatten(1).square().sum(1)
                (grad,) = torch.autograd.grad(height.sum(), leaf)
                found = (leaf.detach() - self.step * grad.sign()).clamp(0, 1)
        return found.detach()


def from_uniform(logits: Tensor) -> Tensor:
    """(n,) KL(u || softmax(logits)): 0 where all classes are alike."""
    return -logits.log_softmax(1).mean(1) - math.log(logits.shape[1])

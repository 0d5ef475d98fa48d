"""SCORE: TRADES with squared distances between probabilities (Pang et al., 2022, arXiv:2202.10103)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import AdversariallyTrained
from robustbench_lite.training import Context, in_mode, keeping_buffers


@dataclass(frozen=True, kw_only=True)
class Score(AdversariallyTrained):
    """Minimise ||p(x) - t||^2 + beta ||p(x') - p(x)||^2, where x' maximises the second distance in the ball.

    t is the label as a probability vector; smoothing: how much of it is shared out among the other classes. beta: weight of the
    second term. The statistics of batch norm do not see what crafting passes through.
    """

    beta: Annotated[float, Field(ge=0)] = 4.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.995
    craft_mode: Literal["eval", "train"] = "train"

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        if self.beta:
            with keeping_buffers(model):
                with torch.no_grad(), in_mode(model, self.craft_mode):
                    reference = model(x).softmax(1)
                x_adv = self.adversary(model, x, lambda z: squared(z.softmax(1), reference), context)
        predicted = model(x).softmax(1)
        clean = squared(predicted, self.target(y, context.info.num_classes)).mean()
        if not self.beta:
            return clean
        apart = squared(model(x_adv).softmax(1), predicted).mean()
        context.log(apart=apart)
        return clean + self.beta * apart

    def target(self, y: Tensor, classes: int) -> Tensor:
        """The labels as probabilities (n, K)."""
        others = self.smoothing / (classes - 1)
        return torch.full((len(y), classes), others, device=y.device) + (1 - self.smoothing - others) * F.one_hot(y, classes)


def squared(p: Tensor, q: Tensor) -> Tensor:
    """Squared euclidean distance of rows: (n,)."""
    return (p - q).square().sum(1)

"""Misclassification-aware adversarial training (MART; Wang et al., 2020, ICLR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import AdversariallyTrained
from robustbench_lite import losses
from robustbench_lite.training import Context


@dataclass(frozen=True, kw_only=True)
class Mart(AdversariallyTrained):
    """Raise the true class and lower the best wrong one under attack, and pull predictions together where the clean one errs.

    beta: weight of the divergence between predictions.
    """

    beta: Annotated[float, Field(ge=0)] = 5.0
    weight_decay: Annotated[float, Field(ge=0)] = 3.5e-3

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        x_adv = self.adversary(model, x, lambda z: losses.cross_entropy(z, y), context, start="gaussian")
        clean, adversarial = model(x).log_softmax(1), model(x_adv).log_softmax(1)
        right = y[:, None]
        best_wrong = adversarial.scatter(1, right, -torch.inf).amax(1).exp()
        boosted = -adversarial.gather(1, right)[:, 0] - (1.0001 - best_wrong + 1e-12).log()
        divergence = (clean.exp() * (clean - adversarial)).sum(1)
        error = 1.0000001 - clean.exp().gather(1, right)[:, 0]
        context.log(boosted=boosted.mean(), divergence=divergence.mean())
        loss: Tensor = boosted.mean() + self.beta * (divergence * error).mean()
        return loss

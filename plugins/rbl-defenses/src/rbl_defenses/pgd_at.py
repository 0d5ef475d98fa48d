"""PGD adversarial training (Madry et al., 2018, arXiv:1706.06083)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import AdversariallyTrained
from robustbench_lite import losses
from robustbench_lite.training import Context


@dataclass(frozen=True, kw_only=True)
class PGDTraining(AdversariallyTrained):
    """Minimise the cross-entropy at the points that PGD finds from a uniform start.

    mix: weight of the clean loss, 0 for adversarial examples only.
    """

    mix: Annotated[float, Field(ge=0, le=1)] = 0.0

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        x_adv = self.adversary(model, x, lambda z: losses.cross_entropy(z, y), context)
        adversarial = F.cross_entropy(model(x_adv), y)
        if not self.mix:
            return adversarial
        return self.mix * F.cross_entropy(model(x), y) + (1 - self.mix) * adversarial

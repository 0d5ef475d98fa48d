"""N-FGSM: one step from noise that is larger than the ball, without clipping (de Jorge et al., 2022, arXiv:2202.01181)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.single_step import SingleStep
from robustbench_lite import losses
from robustbench_lite.training import Context, craft


@dataclass(frozen=True, kw_only=True)
class NFGSM(SingleStep):
    """Minimise the cross-entropy at x + u + alpha eps sign(gradient at x + u), with u uniform in [-k eps, k eps].

    The point is in the box, and up to (k + alpha) eps away from x. k: size of the noise, in units of eps.
    """

    k: Annotated[float, Field(ge=0)] = 2.0

    def point(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        eps = context.eps
        return craft(
            model,
            x,
            lambda z: losses.cross_entropy(z, y),
            eps=(self.k + self.alpha) * eps,  # a ball that the step cannot leave
            step=self.alpha * eps,
            steps=1,
            start=x + torch.empty_like(x).uniform_(-self.k * eps, self.k * eps),
            mode=self.craft_mode,
        )

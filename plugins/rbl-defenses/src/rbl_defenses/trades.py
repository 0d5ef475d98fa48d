"""TRADES (Zhang et al., 2019, arXiv:1901.08573)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import AdversariallyTrained
from robustbench_lite.training import Context, in_mode


@dataclass(frozen=True, kw_only=True)
class Trades(AdversariallyTrained):
    """Minimise CE(f(x), y) + beta KL(p(x) || p(x')), where x' maximises that divergence in the ball.

    beta: weight of the divergence.
    """

    beta: Annotated[float, Field(ge=0)] = 6.0

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        logits = model(x)
        clean = F.cross_entropy(logits, y)
        if self.beta == 0:
            return clean
        with torch.no_grad(), in_mode(model, "eval"):
            reference = model(x).softmax(1)
        # At x itself the divergence has no gradient, so the ascent starts a little beside it.
        x_adv = self.adversary(
            model, x, lambda z: F.kl_div(z.log_softmax(1), reference, reduction="none").sum(1), context, start="gaussian"
        )
        # A probability that underflows to 0 would have an infinite logarithm, and the gradient would be NaN.
        predicted = logits.softmax(1).clamp_min(torch.finfo(logits.dtype).tiny)
        divergence = F.kl_div(model(x_adv).log_softmax(1), predicted, reduction="batchmean")
        return clean + self.beta * divergence

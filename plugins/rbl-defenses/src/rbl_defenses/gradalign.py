"""GradAlign (Andriushchenko & Flammarion, 2020, arXiv:2007.02617): gradients that agree inside the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.fgsm_at import FGSMTraining
from robustbench_lite.training import Context


@dataclass(frozen=True, kw_only=True)
class GradAlign(FGSMTraining):
    """FGSM training plus ``weight`` times 1 - cos of the loss's gradients at x and at x + u, with u uniform in the ball.

    The gradient of the regulariser goes through that at x + u; the one at x counts as fixed, as in the authors' program.
    Examples whose gradient vanishes are left out. weight: 0.2 at eps 8/255; the paper raises it with the radius, tenfold from
    one multiple of 8/255 to the next.
    """

    weight: Annotated[float, Field(ge=0)] = 0.2

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        fooled = super().loss(model, x, y, context)
        if not self.weight:
            return fooled
        eps = context.eps
        near = context.once("near", lambda: (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1))
        misaligned = 1 - cosine(input_gradient(model, x, y).detach(), input_gradient(model, near, y))
        context.log(misaligned=misaligned)
        return fooled + self.weight * misaligned


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient (n, C, H, W) of each example's cross-entropy, with a graph, so that it can be descended on."""
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf, create_graph=True)
    return gradient


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The mean cosine between rows, over the rows where neither vanishes; 1 where there is none."""
    a, b = a.flatten(1), b.flatten(1)
    there = (a != 0).any(1) & (b != 0).any(1)
    if not bool(there.any()):
        return b.sum() * 0 + 1
    # Not F.cosine_similarity: gradients are tiny where the model is sure, and it takes them for zero.
    unit_a, unit_b = (v[there] / v[there].norm(dim=1, keepdim=True) for v in (a, b))
    found: Tensor = (unit_a * unit_b).sum(1).mean()
    return found

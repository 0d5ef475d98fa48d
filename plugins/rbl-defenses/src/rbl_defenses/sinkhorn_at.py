"""Sinkhorn adversarial training, SAT (Bouniot et al., 2021, arXiv:2102.03156): clean and adversarial logits as two clouds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import AdversariallyTrained
from robustbench_lite import losses
from robustbench_lite.training import Context


@dataclass(frozen=True, kw_only=True)
class SinkhornTraining(AdversariallyTrained):
    """CE(f(x'), y) plus the Sinkhorn divergence between the logits of a batch at x and those at x'.

    x' is crafted in training mode, as the authors do, but inside the box, which they do not.

    weight: of the divergence. sigma: its entropic regularisation, which is little where logits are large. iterations: at most
    so many of Sinkhorn's. tolerance: the sum of the changes of a potential below which they end.
    """

    weight: Annotated[float, Field(ge=0)] = 1.0
    sigma: Annotated[float, Field(gt=0)] = 1.0
    iterations: Annotated[int, Field(ge=1)] = 50
    tolerance: Annotated[float, Field(ge=0)] = 0.1
    craft_mode: Literal["eval", "train"] = "train"

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        x_adv = self.adversary(model, x, lambda z: losses.cross_entropy(z, y), context)
        adversarial = model(x_adv)
        total = F.cross_entropy(adversarial, y)
        if not self.weight:
            return total
        divergence = sinkhorn_divergence(
            model(x), adversarial, sigma=self.sigma, iterations=self.iterations, tolerance=self.tolerance
        )
        context.log(sinkhorn=divergence)
        return total + self.weight * divergence


def sinkhorn_divergence(a: Tensor, b: Tensor, *, sigma: float, iterations: int, tolerance: float) -> Tensor:
    """W(a, b) - W(a, a) / 2 - W(b, b) / 2, W being ``transport_cost``; 0 where the clouds (n, d) and (m, d) are equal."""

    def cost(one: Tensor, other: Tensor) -> Tensor:
        return transport_cost(one, other, sigma=sigma, iterations=iterations, tolerance=tolerance)

    return cost(a, b) - 0.5 * cost(a, a) - 0.5 * cost(b, b)


def transport_cost(a: Tensor, b: Tensor, *, sigma: float, iterations: int, tolerance: float) -> Tensor:
    """The mean squared distance between the points (n, d) and (m, d) of two clouds under the plan P that moves one onto the
    other at the least cost <P, C> - sigma H(P), every point of a cloud having the same mass.

    P is found by Sinkhorn's iterations on the potentials u and v (Cuturi, 2013, arXiv:1306.0895), in logarithms: until the
    change of u sums to less than ``tolerance``, or ``iterations`` of them. Gradients flow through them all.
    """
    cost = (a[:, None] - b).square().sum(2)
    n, m = cost.shape
    u, v = cost.new_zeros(n), cost.new_zeros(m)
    for _ in range(iterations):
        before = u
        u = -sigma * (math.log(n) + ((v - cost) / sigma).logsumexp(1))
        v = -sigma * (math.log(m) + ((u[:, None] - cost) / sigma).logsumexp(0))
        if (u - before).abs().sum() < tolerance:
            break
    plan = ((u[:, None] + v - cost) / sigma).exp()
    return (plan * cost).sum()

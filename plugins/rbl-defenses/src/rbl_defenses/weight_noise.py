"""Layers whose weights are drawn anew in every pass: w + noise, gaussian, of a learned covariance.

The images of a pass share a draw, as in the papers' code. At test time the core numbers the passes, so that neither the batch
nor its order matters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbl_defenses.surgery import Wrapped
from robustbench_lite import randn_per_pass

LAYERS = (nn.Conv2d, nn.Linear)


class NoisyLayer(Wrapped, ABC):
    """A convolution or linear layer with noise on its weights, not on its bias: ``deviation() e1 + sum_r factors()_r e2_r``."""

    @property
    def weight(self) -> Tensor:
        """The weights without noise."""
        return self.wrapped.get_parameter("weight")

    @abstractmethod
    def deviation(self) -> Tensor:
        """Standard deviation of what is drawn for each weight by itself: broadcastable to the weights."""

    def factors(self) -> Tensor:
        """(rank, *weight.shape): how each weight follows numbers that all weights have in common; by default none."""
        return self.weight.new_empty(0, *self.weight.shape)

    def draw(self) -> tuple[Tensor, Tensor | None]:
        """The weights with noise (u, *weight.shape), and which of them each image meets; see ``randn_per_pass``."""
        numbers, which = randn_per_pass(self.weight)
        weights = self.weight + self.deviation() * numbers
        factors = self.factors()
        if len(factors):
            common, _ = randn_per_pass(factors.flatten(1)[:, 0])
            weights = weights + torch.einsum("ur,r...->u...", common, factors)
        return weights, which

    def forward(self, x: Tensor) -> Tensor:
        weights, which = self.draw()
        if which is None:
            return self._with(weights[0], x)
        groups = [(which == k).nonzero()[:, 0] for k in range(len(weights))]
        parts = [self._with(weight, x[rows]) for weight, rows in zip(weights, groups, strict=True)]
        return torch.cat(parts)[torch.cat(groups).argsort()]

    def _with(self, weight: Tensor, x: Tensor) -> Tensor:
        layer = self.wrapped  # not functional_call, whose bookkeeping shows beside small convolutions
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[arg-type]
        return F.linear(x, weight, layer.bias)  # type: ignore[arg-type]

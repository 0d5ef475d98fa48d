"""Layers whose weights are drawn anew in every pass: w + noise, gaussian, of a learned covariance.

At test time each image gets a draw of its own, numbered by the core, so that neither the batch nor its order matters. In a
convolution those are kernels per image. In a linear layer the noise meets one vector: what it adds to the outputs is gaussian
too, and is drawn there (the local reparametrization of Kingma et al., 2015, arXiv:1506.02557), which has the same distribution
for any one image and needs a number per output instead of one per weight. Noise that all weights have in common needs a number
per factor in either layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbl_defenses.surgery import Wrapped
from robustbench_lite import randn_like

LAYERS = (nn.Conv2d, nn.Linear)


class KernelDraws(nn.Module):
    """Standard normal numbers for the weights of each image: a module, so that the memory they take is seen from outside."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return randn_like(x.new_empty(len(x), *weight.shape))


class NoisyLayer(Wrapped, ABC):
    """A convolution or linear layer with noise on its weights, not on its bias: ``deviation() e1 + sum_r factors()_r e2_r``.

    common: one draw for all images of a pass, as it is in training; see ``one_draw_per_pass``.
    """

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__(wrapped)
        self.common = False
        self.kernel_draws = KernelDraws()

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

    def draw(self) -> Tensor:
        """One draw of the noise on all weights, from torch's global generator."""
        own = self.deviation() * torch.randn_like(self.weight)
        factors = self.factors()
        return own + torch.einsum("r,r...->...", torch.randn_like(factors.flatten(1)[:, 0]), factors)

    def forward(self, x: Tensor) -> Tensor:
        plain: Tensor = self.wrapped(x)
        if self.common:
            return plain + self._linear(x, self.draw())
        added = self._own(x, plain) if isinstance(self.wrapped, nn.Linear) else self._own_kernels(x)
        factors = self.factors()
        if len(factors):
            followed = self._linear(x, factors.flatten(0, 1))
            followed = followed.view(len(x), *factors.shape[:2], *followed.shape[2:])
            common = randn_like(followed.new_empty(len(x), len(factors)))
            added = added + (followed * common.view(*common.shape, *(1,) * (followed.dim() - 2))).sum(1)
        return plain + added

    def _linear(self, x: Tensor, weight: Tensor, images: int = 1) -> Tensor:
        """The layer with other weights and no bias. images: how many lie side by side in the channels."""
        if isinstance(self.wrapped, nn.Conv2d):
            layer = self.wrapped
            return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, images)  # type: ignore[arg-type]
        return F.linear(x, weight)

    def _own(self, x: Tensor, plain: Tensor) -> Tensor:
        variance = F.linear(x.square(), self.deviation().square().expand_as(self.weight))
        return variance.clamp_min(torch.finfo(x.dtype).tiny).sqrt() * randn_like(plain)

    def _own_kernels(self, x: Tensor) -> Tensor:
        n = len(x)
        kernels = self.deviation() * self.kernel_draws(x, self.weight)
        side_by_side = self._linear(x.flatten(0, 1)[None], kernels.flatten(0, 1), n)
        return side_by_side.view(n, -1, *side_by_side.shape[2:])


@contextmanager
def one_draw_per_pass(model: nn.Module) -> Iterator[None]:
    """While this lasts, the images of a pass share one draw of the weights."""
    layers = [module for module in model.modules() if isinstance(module, NoisyLayer)]
    before = [layer.common for layer in layers]
    for layer in layers:
        layer.common = True
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.common = was

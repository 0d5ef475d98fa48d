"""Backward pass differentiable approximation (Athalye et al., 2018, arXiv:1802.00420).

A defense that quantises, compresses or thresholds its input gives no useful gradient. ``bpda`` keeps what such a step computes
and replaces only its gradient, by that of the identity or of a smooth stand-in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from robustbench_lite.errors import PluginError

Step = Callable[[Tensor], Tensor]


def bpda(forward: Step, backward: Literal["identity"] | Step = "identity") -> Step:
    """``forward`` with another gradient: its values bit for bit, the derivative of ``backward`` at the same point.

    forward: any function of a tensor; it runs without a graph. backward: ``"identity"``, for a step whose output has the shape
    of its input and is close to it, or a differentiable function with outputs of the shape of ``forward``'s. ``backward``
    runs only where a gradient is wanted, after ``forward``.

    Raises PluginError where the two shapes differ, or ``forward`` returns no floating-point tensor.
    """
    if not callable(backward) and backward != "identity":
        raise PluginError(f"bpda: backward must be 'identity' or a function, not {backward!r}")

    def step(x: Tensor) -> Tensor:
        with torch.no_grad():
            value = forward(x.detach())
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise PluginError(f"bpda: forward returned {got}, which has no gradient", hint="return a floating-point tensor")
        if not (torch.is_grad_enabled() and x.requires_grad):
            return value
        smooth = backward(x) if callable(backward) else x
        if smooth.shape != value.shape:
            raise PluginError(
                f"bpda: forward returned shape {tuple(value.shape)} and backward {tuple(smooth.shape)}",
                hint="give a backward function whose output has the shape of forward's",
            )
        return with_gradient_of(smooth, value)

    return step


def with_gradient_of(smooth: Tensor, value: Tensor) -> Tensor:
    """``value`` bit for bit, with the gradient of ``smooth``, a tensor of the same shape."""
    replaced: Tensor = _Replace.apply(smooth, value)  # type: ignore[no-untyped-call]
    return replaced


class _Replace(torch.autograd.Function):
    """The value of the second argument with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, value: Tensor) -> Tensor:
        return value.clone()  # not the tensor itself, so that layers that work in place may follow

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None

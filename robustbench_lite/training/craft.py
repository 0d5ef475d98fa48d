"""Adversarial examples for training, and what crafting them must not change."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from robustbench_lite import projections

if TYPE_CHECKING:
    from collections.abc import Iterator


def craft(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    eps: float,
    step: float,
    steps: int,
    norm: Literal["linf", "l2"] = "linf",
    start: Literal["uniform", "gaussian", "zero"] | Tensor = "uniform",
    mode: Literal["eval", "train"] = "eval",
) -> Tensor:
    """Adversarial examples for training: projected ascent on ``loss(logits) -> (n,)`` in the ball of radius eps and the box.

    norm: steps go along the sign of the gradient (``linf``) or the gradient itself at length ``step`` (``l2``). start:
    uniform in the ball; ``gaussian`` is x + 0.001 N(0, I), as TRADES has it; zero; or points of the shape of ``x``, brought
    into ball and box. mode: that of batch norm while crafting; the model's own mode is restored. ``x`` is not modified and
    no gradient of a parameter is left behind. It draws from torch's global generator, which ``train`` seeds. The gradient is
    that of the model's ``surrogate``, where it has one.
    """
    answer = getattr(model, "surrogate", model)
    project = _linf_project(x, eps) if norm == "linf" else _l2_project(x, eps)
    x_adv = project(start if isinstance(start, Tensor) else _start(x, eps, norm, start))
    with in_mode(model, mode):
        for _ in range(steps):
            leaf = x_adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(loss(answer(leaf)).sum(), leaf)
            x_adv = project(leaf.detach() + step * (grad.sign() if norm == "linf" else _unit(grad)))
    return x_adv.detach()


def _start(x: Tensor, eps: float, norm: str, start: str) -> Tensor:
    if start == "gaussian":
        return x + 0.001 * torch.randn_like(x)
    if start == "zero":
        return x.clone()
    if norm == "linf":
        return x + torch.empty_like(x).uniform_(-eps, eps)
    # Uniform in the ball: of d dimensions, the radius is distributed as u^(1/d).
    radius = eps * torch.rand(len(x), device=x.device, dtype=x.dtype) ** (1 / max(1, x[0].numel()))
    return x + radius.view(-1, *(1,) * (x.dim() - 1)) * _unit(torch.randn_like(x))


def _linf_project(x: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    return lambda z: z.clamp(low, high)


def _l2_project(x: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    # The box after the ball: x is in the box, so this only brings points nearer to it.
    return lambda z: (x + projections.l2(z - x, eps)).clamp(0, 1)


def _unit(delta: Tensor) -> Tensor:
    """Each example's part at l2 length 1; zero stays zero."""
    length = delta.flatten(1).norm(dim=1).clamp_min(torch.finfo(delta.dtype).tiny)
    unit: Tensor = delta / length.view(-1, *(1,) * (delta.dim() - 1))
    return unit


@contextmanager
def in_mode(model: nn.Module, mode: Literal["eval", "train"]) -> Iterator[None]:
    """Put a model into a mode, and each of its modules back into its own afterwards: some may be frozen in evaluation mode."""
    were = [(module, module.training) for module in model.modules()]
    model.train(mode == "train")
    try:
        yield
    finally:
        for module, was in were:
            module.training = was


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[None]:
    """Put a model's buffers back afterwards: passes in training mode leave no trace in the running statistics of batch norm."""
    were = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, was in were:
                buffer.copy_(was)

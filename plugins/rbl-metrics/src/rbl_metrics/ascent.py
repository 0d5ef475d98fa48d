"""The inner attack of metrics that need one: sign ascent on the cross-entropy in the linf ball and the box."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lite import MeasuredModel

STEP = 0.223125  # of eps: 0.007 at 8/255


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """(n,) cross-entropy."""
    return F.cross_entropy(logits, y, reduction="none")


def sign_ascent(
    forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, start: Tensor, *, eps: float, steps: int, step: float = STEP
) -> tuple[Tensor, Tensor]:
    """The best point on the way, and its cross-entropy (n,): projected sign ascent from ``x + start``.

    x: (n, C, H, W) in [0, 1], y: (n,). step: in units of eps. No step is taken where eps or steps is 0.
    """
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    point = (x + start).clamp(low, high)
    best, most = point, torch.full((len(x),), -torch.inf, device=x.device)
    for number in range(steps + 1):
        leaf = point.detach().requires_grad_(number < steps)
        with torch.set_grad_enabled(number < steps):
            loss = cross_entropies(forward(leaf), y)
        better = loss.detach() > most
        most = torch.where(better, loss.detach(), most)
        best = torch.where(better[:, None, None, None], leaf.detach(), best)
        if number < steps:
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            point = (leaf.detach() + step * eps * grad.sign()).clamp(low, high)
    return best, most


def ascend(model: MeasuredModel, eps: float, steps: int, step: float = STEP) -> Tensor:
    """Adversarial points for all examples of a model, in micro-batches that fit; of a stochastic one by its mean gradient."""
    x, y = model.x, model.y
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    point = (x + model.rng.uniform(None, x.shape[1:], low=-eps, high=eps).to(x.device)).clamp(low, high)
    best, most = point, torch.full((len(x),), -torch.inf, device=x.device)
    for _ in range(steps):
        _, loss, grad = model.loss_and_grad(point, cross_entropies, y)
        better = loss > most
        most, best = torch.where(better, loss, most), torch.where(better[:, None, None, None], point, best)
        point = (point + step * eps * grad.sign()).clamp(low, high)
    last = cross_entropies(model.logits(point), y)
    return torch.where((last > most)[:, None, None, None], point, best)

"""Steepest ascent in several balls at once, for training against their union."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from robustbench_lite import projections
from robustbench_lite.training import in_mode

Norm = Literal["linf", "l2", "l1"]
# How many coordinates a step in l1 changes, drawn anew for each step.
FEWEST, MOST = 5, 20


def ascend(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    radii: Mapping[Norm, float],
    relative_step: float,
    steps: int,
    mode: Literal["eval", "train"] = "eval",
) -> Tensor:
    """The best of the points that are passed when each step goes, for each example, to where ``loss(logits) -> (n,)`` is
    highest among one step for each norm (Maini et al., 2020, arXiv:1909.04068).

    It starts at x. radii: of the balls; the point is in one of them, and in the box. relative_step: length of a step in each
    norm, in units of its radius. With one norm it is PGD that keeps its best point. It draws from torch's global generator.
    """
    best, most = x, torch.full((len(x),), -torch.inf, device=x.device)
    now = x
    with in_mode(model, mode):
        for _ in range(steps):
            leaf = now.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(model(leaf)).sum(), leaf)
            found = [step(x, now, gradient, norm, eps, relative_step * eps) for norm, eps in radii.items()]
            now, highest = worst(model, found, loss)
            better = highest > most
            most = torch.where(better, highest, most)
            best = torch.where(better.view(-1, *(1,) * (x.dim() - 1)), now, best)
    return best.detach()


def worst(model: nn.Module, points: Sequence[Tensor], loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """For each example the one of several points (n, C, H, W) where ``loss(logits) -> (n,)`` is highest, and how high."""
    with torch.no_grad():
        values = torch.stack([loss(model(point)) for point in points])
    highest, which = values.max(0)
    return torch.stack(tuple(points))[which, torch.arange(len(which), device=which.device)], highest


def step(x: Tensor, now: Tensor, gradient: Tensor, norm: Norm, eps: float, length: float) -> Tensor:
    """One step of a length in the direction of steepest ascent in a norm, projected onto its ball and clipped to the box."""
    delta = now - x
    if norm == "linf":
        moved = projections.linf(delta + length * gradient.sign(), eps)
    elif norm == "l2":
        size = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        moved = projections.l2(delta + length * gradient / size.view(-1, *(1,) * (x.dim() - 1)), eps)
    else:
        moved = projections.l1(delta + length * few(gradient, now), eps)
    return (x + moved).clamp(0, 1)


def few(gradient: Tensor, now: Tensor) -> Tensor:
    """The direction of l1 norm 1 along the signs of the largest components of a gradient: from 5 to 20 of those that the box
    does not stop, the same number for all examples.
    """
    stopped = ((gradient < 0) & (now <= 0)) | ((gradient > 0) & (now >= 1))
    free = gradient.masked_fill(stopped, 0).flatten(1)
    count = min(int(torch.randint(FEWEST, MOST + 1, ())), free.shape[1])
    largest = free.abs().topk(count, dim=1).indices
    chosen = free.gather(1, largest).sign() / count
    return torch.zeros_like(free).scatter_(1, largest, chosen).view_as(gradient)

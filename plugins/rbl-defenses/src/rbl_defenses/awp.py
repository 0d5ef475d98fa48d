"""Adversarial weight perturbation (Wu et al., 2020, arXiv:2004.05884): a flatter loss in weight space, around any method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbench_lite.training import Around, Context, Update, keeping_buffers


@dataclass(frozen=True, kw_only=True)
class AWP(Around):
    """Descend at weights that one normalised ascent step has moved, and move them back.

    method: the defense around which this is. gamma: length of the ascent step in each weight tensor, relative to that tensor's
    own. warmup: epochs before it begins. Weight tensors are the parameters of more than one dimension: biases and the affine
    parameters of batch norm stay where they are.
    """

    method: str = "pgd-at"
    gamma: Annotated[float, Field(ge=0)] = 0.005
    warmup: Annotated[int, Field(ge=0)] = 5

    def train_batch(self, model: nn.Module, x: Tensor, y: Tensor, context: Context, update: Update) -> None:
        if self.gamma == 0 or context.epoch < self.warmup:
            super().train_batch(model, x, y, context, update)
            return
        weights = [p for p in model.parameters() if p.dim() > 1 and p.requires_grad]
        # The look ahead leaves the running statistics as they are; what it crafts is what the descent is on, too.
        with keeping_buffers(model):
            gradients = update.gradients(lambda: self.loss(model, x, y, context.aside()), weights)
        with moved(weights, ascent(weights, gradients, self.gamma)):
            super().train_batch(model, x, y, context, update)


def ascent(weights: Sequence[Tensor], gradients: Sequence[Tensor], gamma: float) -> list[Tensor]:
    """For each weight tensor, its gradient at the length gamma ||w||."""
    return [gamma * w.detach().norm() / (g.norm() + 1e-20) * g for w, g in zip(weights, gradients, strict=True)]


@contextmanager
def moved(weights: Sequence[Tensor], by: Sequence[Tensor]) -> Iterator[None]:
    """Move weights, and undo exactly that afterwards: what is left is what they were, plus what they learnt meanwhile."""
    before = [weight.detach().clone() for weight in weights]
    there = [weight + change for weight, change in zip(before, by, strict=True)]
    _put(weights, there)
    try:
        yield
    finally:
        learnt = [weight.detach() - start for weight, start in zip(weights, there, strict=True)]
        _put(weights, [was + step for was, step in zip(before, learnt, strict=True)])


@torch.no_grad()
def _put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)

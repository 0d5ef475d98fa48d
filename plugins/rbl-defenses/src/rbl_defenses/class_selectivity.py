"""Class-selectivity regularisation (Leavitt & Morcos, 2020, arXiv:2007.04440): units that answer to one class more, or less."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from robustbench_lite.training import Context


@dataclass(frozen=True, kw_only=True)
class ClassSelectivity(ImageDefense):
    """CE(f(x), y) - alpha SI, SI the class selectivity of units behind a ReLU: its mean over those of a layer, and over layers.

    The means of classes are those of a batch: with many classes, give it large batches; the authors have 256.

    alpha: above 0, units become selective, below, they become less so.
    """

    alpha: Annotated[float, Field(allow_inf_nan=False)] = 1.0

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        if not self.alpha:
            return F.cross_entropy(model(x), y)
        with activations(model) as layers:
            logits = model(x)
        selectivity = mean_selectivity(layers, y)
        context.log(selectivity=selectivity)
        return F.cross_entropy(logits, y) - self.alpha * selectivity


@contextmanager
def activations(model: nn.Module) -> Iterator[list[Tensor]]:
    """What the ReLUs of a model put out (n, C, ...) while this lasts, in the order in which they run."""
    seen: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for module in model.modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def mean_selectivity(layers: Sequence[Tensor], y: Tensor) -> Tensor:
    """Over the units of each layer, and then over layers: each counts the same, however many units it has."""
    return torch.stack(
        [selectivity(layer.flatten(2).mean(2) if layer.dim() > 2 else layer, y).mean() for layer in layers]
    ).mean()


def selectivity(activity: Tensor, y: Tensor) -> Tensor:
    """(C,) (m - m_rest) / (m + m_rest) for each unit: m its mean activity (n, C) >= 0 on the class to which it answers most,
    m_rest the mean over the other classes of its mean activity on them. Of labels y (n,) of one class alone, it is 0.
    """
    one_hot = F.one_hot(y).to(activity)
    counts = one_hot.sum(0)
    present = counts > 0
    if present.sum() < 2:
        return activity.new_zeros(activity.shape[1])
    means = (one_hot.T @ activity)[present] / counts[present, None]
    most = means.amax(0)
    rest = (means.sum(0) - most) / (len(means) - 1)
    return (most - rest) / (most + rest + 1e-7)

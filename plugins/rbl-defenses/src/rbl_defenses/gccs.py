"""GCCS (Ali et al., 2020, arXiv:2010.15487): Gaussian class-conditional simplex loss instead of cross-entropy.

A reconstruction: neither the paper's text nor code was at hand, and the constants are those that are remembered of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from robustbench_lite import DatasetInfo, UsageError
from robustbench_lite.training import Context, Recipe

# Added to every variance: that of few examples, or of outputs that agree, may be 0.
JITTER = 1e-2
# Examples of a class that its statistics need.
LEAST = 4


@dataclass(frozen=True, kw_only=True)
class GCCS(ImageDefense):
    """Bring the outputs of each class to a Gaussian around a vertex of a simplex; the vertex nearest to an output is its class.

    Statistics are of each class in a batch: with many classes, give it large batches.

    epochs: None for 200 on digits and the data set's preset elsewhere. lr: peak learning rate; None for 0.01. mean: distance of
    the vertices from the origin. deviation: of the Gaussians. kurtosis: weight of the outputs' excess over a Gaussian's.
    """

    batch_size: Annotated[int, Field(ge=1)] = 256
    mean: Annotated[float, Field(gt=0)] = 70.0
    deviation: Annotated[float, Field(gt=0)] = 1.0
    kurtosis: Annotated[float, Field(ge=0)] = 0.2

    def recipe(self, info: DatasetInfo) -> Recipe:
        given = super().recipe(info)
        epochs = self.epochs or (200 if info.name == "digits" else given.epochs)
        return replace(given, epochs=epochs, lr=self.lr or 0.01)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        logits = model(x)
        each = [self.of_class(logits[y == label], int(label)) for label, n in _counted(y) if n >= LEAST]
        if not each:
            raise UsageError(
                f"no class has {LEAST} examples in a batch of {len(y)}", hint="a larger batch: --set batch_size=1024"
            )
        return torch.stack(each).mean()

    def of_class(self, outputs: Tensor, label: int) -> Tensor:
        """KL(N || N(vertex, deviation^2 I)) + kurtosis (k - 3), N the Gaussian with the moments of the outputs (n, K) of a
        class and k the mean kurtosis of their components. The covariance is a diagonal one for fewer than 2 K examples.
        """
        n, size = outputs.shape
        target = self.deviation**2
        centre = outputs.mean(0)
        away = outputs - centre
        if n >= 2 * size:
            covariance = away.T @ away / (n - 1) + JITTER * torch.eye(size, dtype=away.dtype, device=away.device)
            volume, trace = covariance.logdet(), covariance.trace()
        else:
            variance = away.square().sum(0) / (n - 1) + JITTER
            volume, trace = variance.log().sum(), variance.sum()
        vertex = torch.zeros_like(centre)
        vertex[label] = self.mean
        distance = (centre - vertex).square().sum()
        divergence = 0.5 * (size * math.log(target) - volume - size + trace / target + distance / target)
        if not self.kurtosis:
            return divergence
        fourth = away.pow(4).mean(0) / away.square().mean(0).clamp_min(1e-6).square()
        return divergence + self.kurtosis * (fourth.mean() - 3)


def _counted(y: Tensor) -> list[tuple[int, int]]:
    labels, counts = torch.unique(y, return_counts=True)
    return list(zip(labels.tolist(), counts.tolist(), strict=True))

"""Generated data: images drawn from a simple model of each class, around any method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_defenses.extra_data import ExtraShare
from robustbench_lite.training import Context

# How many training images the model of the classes is fitted to, at most.
FITTED = 20_000


@dataclass(frozen=True, kw_only=True)
class GeneratedData(ExtraShare):
    """Train with a share of each batch drawn from a gaussian per class in the space of its principal components.

    It stands in for the diffusion models of the literature where there is no download: it is fitted to the images that are
    trained on, and brings no knowledge from elsewhere. count: images drawn, once, as many of each class. variance: share of a
    class's variance that the components keep.
    """

    count: Annotated[int, Field(ge=1)] = 10_000
    variance: Annotated[float, Field(gt=0, le=1)] = 0.95

    def extra_data(self, context: Context) -> Drawn:
        images, labels = (part.cpu() for part in context.examples(FITTED))
        known = sorted(set(labels.tolist()))
        y = torch.tensor(known).repeat(self.count // len(known) + 1)[: self.count].sort().values
        x = [gaussian(images[labels == label], int((y == label).sum()), self.variance) for label in known]
        return Drawn(torch.cat(x), y)


def gaussian(images: Tensor, n: int, variance: float) -> Tensor:
    """Images (n, C, H, W) from the gaussian that fits some images (m, C, H, W), in the space of the fewest principal components
    that keep a share of their variance; clipped to [0, 1].
    """
    flat = images.flatten(1).double()
    mean = flat.mean(0)
    _, size, directions = torch.linalg.svd(flat - mean, full_matrices=False)
    kept = (size.square().cumsum(0) < variance * size.square().sum()).sum() + 1
    deviation = size[:kept] / max(1, len(flat) - 1) ** 0.5
    drawn = mean + (torch.randn(n, len(deviation), dtype=flat.dtype) * deviation) @ directions[:kept]
    found: Tensor = drawn.clamp(0, 1).to(images.dtype).view(n, *images.shape[1:])
    return found


class Drawn:
    """A map-style data set in memory."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.y[index])

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Images and labels of some examples."""
        return self.x[indices], self.y[indices]

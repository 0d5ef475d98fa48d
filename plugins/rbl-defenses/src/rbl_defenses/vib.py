"""Training inside a visual imperceptible bound (Chhabra et al., 2020, arXiv:2010.13247): no attack, a radius from the data.

A reconstruction: only the abstract was at hand. The bound is taken as half the distance between images of different classes,
and the defense as a model that is trained to answer alike at random points inside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from robustbench_lite import losses
from robustbench_lite.training import Context, craft, in_mode

# Training images from which the bound is taken at most, and how many of them are compared with all at a time.
EXAMPLES = 10_000
ROWS = 256


@dataclass(frozen=True, kw_only=True)
class VIB(ImageDefense):
    """CE(f(x), y) + augmented CE(f(x~), y) + consistency ||f(x) - f(x~)||^2, x~ a random point of the ball and the box.

    norm: of the ball, whose radius is half the distance from a training image to the nearest of another class. quantile: of
    that over the images: 0 for the least. draws: random points per image, of which the worst is taken. augmented: weight of the
    loss at x~. consistency: weight of the squared distance.
    """

    norm: Literal["linf", "l2"] = "l2"
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.0
    draws: Annotated[int, Field(ge=1)] = 1
    augmented: Annotated[float, Field(ge=0)] = 1.0
    consistency: Annotated[float, Field(ge=0)] = 1.0

    def begin_epoch(self, model: nn.Module, context: Context) -> None:
        if context.epoch == 0:
            context.state["radius"] = imperceptible_bound(*context.examples(EXAMPLES), self.norm, self.quantile)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        logits: Tensor = model(x)
        total = F.cross_entropy(logits, y)
        if not (self.augmented or self.consistency):
            return total
        radius: float = context.state["radius"]
        context.log(radius=radius)
        nearby: Tensor = model(context.once("nearby", lambda: self._worst(model, x, y, radius)))
        distance = (logits - nearby).square().sum(1).mean()
        return total + self.augmented * F.cross_entropy(nearby, y) + self.consistency * distance

    @torch.no_grad()
    def _worst(self, model: nn.Module, x: Tensor, y: Tensor, radius: float) -> Tensor:
        """Of ``draws`` uniform points around each image, the one with the largest loss."""

        def draw() -> Tensor:
            return craft(model, x, lambda z: losses.cross_entropy(z, y), eps=radius, step=0.0, steps=0, norm=self.norm)

        if self.draws == 1:
            return draw()
        points = torch.stack([draw() for _ in range(self.draws)])
        with in_mode(model, "eval"):
            loss = torch.stack([losses.cross_entropy(model(p), y) for p in points])
        worst: Tensor = points[loss.argmax(0), torch.arange(len(x), device=x.device)]
        return worst


def imperceptible_bound(x: Tensor, y: Tensor, norm: Literal["linf", "l2"], quantile: float) -> float:
    """Half the distance from an image (n, ...) to the nearest with another label (n,): its quantile over the images."""
    flat, order = x.flatten(1), float("inf") if norm == "linf" else 2.0
    nearest = []
    for first in range(0, len(x), ROWS):
        rows = slice(first, first + ROWS)
        distance = torch.cdist(flat[rows], flat, order, compute_mode="donot_use_mm_for_euclid_dist")
        nearest.append(distance.masked_fill(y[rows, None] == y, float("inf")).amin(1))
    return 0.5 * float(torch.cat(nearest).quantile(quantile))

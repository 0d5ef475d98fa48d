"""Problems with known answers that attacks are checked on: images, labels, and linear models that classify all of them.

``distances`` gives the exact minimal perturbation of each image inside the box, for as many classes as there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_lite.specs import UNRESTRICTED
from robustbench_lite.testing.toys import Linear
from robustbench_lite.threat import Threat

Vector = NDArray[np.float64]

SHAPE = (1, 8, 8)
N = 24
GENEROUS = 3.0  # radius in units of the median distance: nearly everything can be beaten


class Precise(nn.Module):
    """A module computed in float64: rounding does not depend on who else is in the batch."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(x.double())
        return logits.float()


@dataclass(frozen=True, eq=False)
class Problem:
    """A model and the images x (n, C, H, W) in [0, 1] that it classifies as y (n,).

    linear: the model that ``distances`` speaks of; the model itself, or what it is made of.
    """

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    linear: Linear
    _known: dict[str, Vector] = field(default_factory=dict, repr=False)

    @classmethod
    def make(cls, classes: int = 3, shape: Sequence[int] = SHAPE, n: int = N, seed: int = 0) -> Problem:
        """A linear model with weights from N(0, 1) whose boundaries meet at the grey image; a third of all values at a face."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(classes, math.prod(shape), generator=generator)
        x = (torch.rand(n, *shape, generator=generator) * 1.5 - 0.25).clamp(0, 1)
        model = Precise(Linear(weight, -weight.sum(1) / 2))
        with torch.no_grad():
            y = model(x).argmax(1)
        linear = model.base
        if not isinstance(linear, Linear):
            raise TypeError("the base of Precise is the module it was given")
        return cls(f"a linear model with {classes} classes", model, x, y, linear)

    def behind(self, name: str, model: nn.Module) -> Problem:
        """The same images and labels before another model."""
        return replace(self, name=name, model=model)

    def labelled(self, answer: int) -> Problem:
        """The same images and model, all with one label."""
        return replace(self, y=torch.full_like(self.y, answer), _known={})

    def distances(self, norm: str) -> Vector:
        """(n,) size of the smallest perturbation that changes the class of the linear model; inf where none does."""
        if norm not in self._known:
            self._known[norm] = distances(self.linear, self.x, self.y, norm)
        return self._known[norm]

    def threat(self, norm: str, factor: float = GENEROUS) -> Threat:
        """A threat model of ``factor`` times the median distance; a union of two such balls for ``union``.

        ``unrestricted`` has no distance: it is the same for every factor.
        """
        if norm == UNRESTRICTED:
            return Threat.parse(norm)
        if norm == "union":
            return Threat.parse(f"union:{self.threat('linf', factor)}+{self.threat('l2', factor)}")
        radius = factor * float(np.median(self.distances(norm)))
        return Threat(norm, float(math.ceil(radius)) if norm == "l0" else round(radius, 4))


def distances(model: Linear, x: Tensor, y: Tensor, norm: str) -> Vector:
    """(n,) exact minimal perturbations inside the box; see ``Problem.distances``."""
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    images, labels = x.double().flatten(1).numpy(), y.numpy()
    nearest = np.full(len(x), np.inf)
    for other in range(len(bias)):
        w, b = weight[labels] - weight[other], bias[labels] - bias[other]
        margin = (w * images).sum(1) + b
        room = np.where(w > 0, images, 1 - images)
        found = _distance(np.maximum(margin, 0.0), np.abs(w), room, norm, x.shape[1])
        nearest = np.minimum(nearest, np.where(labels == other, np.inf, found))
    return nearest


def _distance(margin: Vector, slope: Vector, room: Vector, norm: str, channels: int) -> Vector:
    """(n,) least size that lowers ``margin`` (n,) to zero, where value i lowers it by slope_i per unit up to room_i."""
    gain = slope * room
    if norm == "l0":
        pixels = -np.sort(-gain.reshape(len(gain), channels, -1).sum(1), axis=1)
        size = (pixels.cumsum(1) < margin[:, None]).sum(1) + 1.0
    elif norm == "l1":  # the steepest first, and of the last one only what is needed
        order = np.argsort(-slope, axis=1)
        slope, room = np.take_along_axis(slope, order, 1), np.take_along_axis(room, order, 1)
        before = np.cumsum(slope * room, axis=1) - slope * room
        needed = np.clip((margin[:, None] - before) / np.maximum(slope, 1e-300), 0, room)
        size = needed.sum(1)
    elif norm in ("l2", "linf"):  # move_i = min(t * rate_i, room_i), with the least t that is enough
        rate = slope if norm == "l2" else np.sign(slope)
        move = np.minimum(_least(margin, slope, rate, room)[:, None] * rate, room)
        size = np.sqrt((move**2).sum(1)) if norm == "l2" else move.max(1)
    else:
        raise ValueError(f"no closed form for norm {norm!r}")
    return np.where(gain.sum(1) < margin, np.inf, size)


def _least(margin: Vector, slope: Vector, rate: Vector, room: Vector) -> Vector:
    """(n,) the least t at which the moves min(t * rate, room) lower ``margin`` to zero; where none does, any."""
    stop = np.divide(room, rate, out=np.zeros_like(room), where=rate > 0)  # the t at which a value is at its face
    order = np.argsort(stop, axis=1)
    stop, gain, push = (np.take_along_axis(each, order, 1) for each in (stop, slope * room, slope * rate))
    held = np.cumsum(gain, axis=1) - gain  # by the values that are at their faces before this one
    moving = np.cumsum(push[:, ::-1], axis=1)[:, ::-1]
    wanted = np.divide(margin[:, None] - held, moving, out=np.full_like(held, np.inf), where=moving > 0)
    enough = wanted <= stop
    first = np.take_along_axis(wanted, enough.argmax(1)[:, None], 1)[:, 0]
    return np.where(enough.any(1), first, stop[:, -1])

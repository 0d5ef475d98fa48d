"""A linear model with two classes in a box: the images, and how far each is from the other class, in closed form."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from robustbench_lite.testing import Linear
from robustbench_lite.testing.closed_form import smallest_eps

SHAPE = (3, 8, 8)


def problem(n: int = 48, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    """A linear model and images, a third of whose values stand at the box's faces."""
    model = Linear.binary(SHAPE, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x = (torch.rand(n, *SHAPE, generator=generator) * 1.5 - 0.25).clamp(0, 1)
    return model, x, model(x).argmax(1)


def margins(model: Linear, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Per example: w (n, d) and b (n,) of the margin that keeps its class."""
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    return weight[y] - weight[1 - y], bias[y] - bias[1 - y]


@cache
def distances(norm: str) -> np.ndarray:
    """The minimal perturbation of each example of ``problem()`` in linf, l2 or l1."""
    model, x, y = problem()
    w, b = margins(model, y)
    return np.array([smallest_eps(x[i].double().flatten().numpy(), w[i], b[i], norm) for i in range(len(x))])

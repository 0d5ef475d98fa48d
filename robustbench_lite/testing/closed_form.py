"""Closed forms for a linear model with two classes inside the box: what an attack can and cannot reach.

The margin w.x + b > 0 keeps the class. Value i can lower it by |w_i| per unit of change, for as long as the box leaves room.
NumPy in float64, one example at a time: written to be plainly right, not to be fast.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def lowest_margin(x: Vector, w: Vector, b: float, eps: float, norm: str) -> float:
    """The least margin within ``eps`` of ``x`` (d,) in ``linf``, ``l2`` or ``l1``, and inside the box."""
    slope = np.abs(w)
    free = np.where(w > 0, x, 1 - x)
    if norm == "linf":
        move = np.minimum(eps, free)
    elif norm == "l2":
        move = np.minimum(_where(lambda mu: float(np.linalg.norm(np.minimum(mu * slope, free))), eps) * slope, free)
    elif norm == "l1":
        move, left = np.zeros_like(free), eps
        for i in np.argsort(-slope):
            move[i] = min(left, free[i])
            left -= move[i]
    else:
        raise ValueError(f"no closed form for norm {norm!r}; there is one for linf, l2 and l1")
    return float(w @ x + b - slope @ move)


def smallest_eps(x: Vector, w: Vector, b: float, norm: str) -> float:
    """The radius at which the margin can be brought to zero: the minimal perturbation; inf where the box forbids it."""
    if lowest_margin(x, w, b, float(len(x)), norm) > 0:
        return float("inf")
    return _where(lambda eps: -lowest_margin(x, w, b, eps, norm), 0.0)


def _where(rising: Callable[[float], float], wanted: float) -> float:
    """The argument at which a rising function reaches ``wanted``; a very large one where it never does."""
    low, high = 0.0, 1.0
    while rising(high) < wanted and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return high

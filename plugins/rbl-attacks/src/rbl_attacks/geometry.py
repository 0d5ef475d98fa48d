"""Balls and boxes as attacks need them: lengths, random points, and the best point for a linear function.

Images are (N, ...) in [0, 1]; every function treats each example by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from robustbench_lite import Randomness, Threat

TINY = 1e-12
PORTION = 1 << 21  # values that are drawn ahead, or worked on, at a time


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """(N,) values with trailing axes, to be broadcast over ``like`` (N, ...)."""
    return values.view(-1, *(1,) * (like.dim() - 1))


def select(rows: Tensor, *parts: Tensor) -> list[Tensor]:
    """These rows, positions (k,), of each of the parts (n, ...): as by ``part[rows]``, which takes several times as long."""
    return [part.index_select(0, rows) for part in parts]


def length(delta: Tensor, norm: str) -> Tensor:
    """(N, 1, ...) length of each perturbation (N, ...) in ``linf``, ``l2`` or ``l1``, broadcastable to it."""
    flat = delta.flatten(1)
    if norm == "l2":
        return per_image(torch.linalg.vector_norm(flat, dim=1), delta)
    size = flat.abs()  # much faster than the same by vector_norm
    return per_image(size.amax(1) if norm == "linf" else size.sum(1), delta)


def on_sphere(noise: Tensor, norm: str, eps: float) -> Tensor:
    """Noise (N, ...) scaled to length ``eps``; zero stays zero."""
    return noise * (eps / length(noise, norm).clamp_min(TINY))


def direction(gradient: Tensor, norm: str = "l2") -> Tensor:
    """Each gradient (N, ...) at length 1, however small it is; zero where it is zero or not finite.

    The largest value is brought to 1 first: the square of what is below 1e-19 would be zero in float32.
    """
    largest = gradient.flatten(1).abs().amax(1)
    usable = largest.isfinite() & (largest > 0)
    scaled = gradient / per_image(torch.where(usable, largest, 1), gradient)
    scaled = torch.where(per_image(usable, scaled), scaled, 0)
    return scaled if norm == "linf" else scaled / length(scaled, norm).clamp_min(1)


def zeros(directions: Tensor) -> Tensor | None:
    """Positions (k,) of those of the directions (n, ...) that are zero; None where none is."""
    flat = directions.flatten(1)
    if bool(torch.linalg.vector_norm(flat, dim=1).all()):  # a length may be 0 because its squares are too small
        return None
    zero = (flat.abs().amax(1) == 0).nonzero()[:, 0]
    return zero if len(zero) else None


def random_where_zero(directions: Tensor, rng: Randomness, draw: int, rows: Tensor | None = None) -> Tensor:
    """Random directions of Euclidean length 1 in place of those (n, ...) that are zero.

    rows (n,): which examples of ``rng`` they belong to; None for all in order.
    """
    zero = zeros(directions)
    if zero is None:
        return directions
    noise = rng.normal(zero if rows is None else rows[zero], directions.shape[1:], draw=draw)
    return directions.index_copy(0, zero, on_sphere(noise, "l2", 1.0))


def random_on_sphere(x: Tensor, norm: str, eps: float, rng: Randomness) -> Tensor:
    """Perturbations like ``x`` of length ``eps``: uniform noise stretched to it (linf), or gaussian noise."""
    noise = rng.uniform(None, x.shape[1:], low=-1.0, high=1.0) if norm == "linf" else gaussian(x, rng)
    return on_sphere(noise, norm, eps)


def gaussian(x: Tensor, rng: Randomness) -> Tensor:
    """Standard normal numbers like ``x``."""
    return rng.normal(None, x.shape[1:])


def in_ball(x: Tensor, threat: Threat, rng: Randomness) -> Tensor:
    """Perturbations like ``x``, uniform in the ball (before any box): its volume, not its radius, is uniform."""
    shape, eps, d = x.shape[1:], threat.eps, math.prod(x.shape[1:])
    if threat.norm == "linf":
        return rng.uniform(None, shape, low=-eps, high=eps)
    if threat.norm == "l2":
        radius = rng.child("radius").uniform(None, (1,))[:, 0] ** (1 / d)
        return on_sphere(gaussian(x, rng), "l2", eps) * per_image(radius, x)
    # d exponential variables over the sum of d + 1 of them are uniform in the simplex.
    exponential = -torch.log1p(-rng.uniform(None, (d + 1,)))
    share = exponential[:, :d] / exponential.sum(1, keepdim=True).clamp_min(TINY)
    return eps * share.view_as(x) * rng.child("sign").sign(None, shape)


def portions(n: int, size: int, count: int) -> Iterator[tuple[slice, range]]:
    """Cut ``count`` random directions of ``size`` values for each of n examples into pieces that fit in memory.

    Which directions come together does not depend on n, so that neither does the rounding of sums over them.
    """
    group = max(1, min(count, PORTION // size))
    block = max(1, PORTION // (size * group))
    for first in range(0, n, block):
        for number in range(0, count, group):
            yield slice(first, min(first + block, n)), range(number, min(number + group, count))


def linear_optimum(x: Tensor, gradient: Tensor, threat: Threat) -> Tensor:
    """The point of ball ∩ box where the linear function with this gradient is highest; x, gradient: (N, ...).

    It is where a white-box attack on a linear model should end. linf: every value moves by eps along its sign. l1: the values
    with the largest derivatives move as far as the box lets them, until eps is spent. l2: value i moves by
    min(mu |g_i|, room_i), with the mu at which the length is eps. Values whose derivative is zero, or not finite, do not move.
    """
    if threat.norm == "linf":
        return threat.project(x, x + threat.eps * gradient.sign())
    origin, slope = x.flatten(1).double(), gradient.flatten(1).double().nan_to_num_(0, 0, 0)
    size, room = slope.abs(), torch.where(slope > 0, 1 - origin, origin)
    move = _fill(size, room, threat.eps) if threat.norm == "l1" else _stretch(size, room, threat.eps)
    return threat.project(x, (origin + slope.sign() * move).to(x.dtype).view_as(x))


def _fill(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """Spend eps on the largest ``size`` (N, d) first, at most ``room`` (N, d) on each."""
    room = torch.where(size > 0, room, 0)
    order = size.argsort(dim=1, descending=True, stable=True)
    ordered = room.gather(1, order)
    before = ordered.cumsum(1) - ordered
    return torch.empty_like(room).scatter_(1, order, torch.minimum(ordered, (eps - before).clamp_min(0)))


def _stretch(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """min(mu * size, room) with the mu at which its Euclidean length is eps; all room where that is shorter."""
    at, order = torch.where(size > 0, room / size, math.inf).sort(1)
    full, free = room.gather(1, order).square(), size.gather(1, order).square()
    held = full.cumsum(1) - full  # what values before this one contribute once they stand at the box
    moving = free.flip(1).cumsum(1).flip(1)
    reached = held + torch.where(moving > 0, at.square() * moving, math.inf)
    k = (reached <= eps**2).sum(1, keepdim=True).clamp_max(size.shape[1] - 1)
    mu = ((eps**2 - held.gather(1, k)).clamp_min(0) / moving.gather(1, k)).sqrt().nan_to_num(nan=math.inf, posinf=math.inf)
    return torch.where(size > 0, torch.minimum(mu * size, room), 0)

"""Projections onto balls and onto ball ∩ box, exact and for each example by itself.

``linf``, ``l2``, ``l1`` and ``l0`` take perturbations (N, ...) and return the nearest perturbation of the ball in Euclidean
distance. ``l2_box``, ``l1_box`` and ``l0_box`` also take the clean images and return the nearest perturbation that is in the
ball *and* leads to an image in [0, 1]. ``eps`` is one radius or a tensor (N,) of radii, at least 0. Perturbations in the set
come back bit for bit. No value leaves the device, so nothing waits for a GPU.

The shrinkage of l1 (Duchi et al., 2008) and its box-constrained form are solved by sorting the breakpoints of a piecewise
linear function, in float64 and O(d log d); see ``l1_box``.

``project`` works on images and serves ``Threat.project``. Under l2 and l1 it asks which images are outside, and moves those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robustbench_lite.specs import UNRESTRICTED
from robustbench_lite.threat import in_portions

if TYPE_CHECKING:
    from robustbench_lite.threat import Threat

Radius = float | Tensor


def linf(delta: Tensor, eps: Radius) -> Tensor:
    """Nearest perturbation with every value in [-eps, eps]."""
    if isinstance(eps, Tensor):
        bounds = _column(eps, delta).to(delta.dtype).view(-1, *(1,) * (delta.dim() - 1))
        return torch.clamp(delta, -bounds, bounds)
    bound = _upper(eps, delta.dtype)
    return delta.clamp(-bound, bound)


def l2(delta: Tensor, eps: Radius) -> Tensor:
    """Nearest perturbation of Euclidean length at most eps: scaled down where it is longer."""
    flat = delta.flatten(1)
    scale = _l2_scale(flat, eps)
    return (flat * scale).view_as(delta)


def l1(delta: Tensor, eps: Radius) -> Tensor:
    """Nearest perturbation with sum of absolute values at most eps (Duchi et al., 2008)."""
    flat = delta.flatten(1)
    size, radius = flat.double().abs(), _column(eps, flat)
    ordered, _ = size.sort(1, descending=True)
    excess = ordered.cumsum(1) - radius
    count = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    last = (ordered * count > excess).sum(1, keepdim=True).clamp(min=1)
    theta = excess.gather(1, last - 1) / last
    shrunk = flat.sign() * (size - theta).clamp(min=0)
    return torch.where(size.sum(1, keepdim=True) > radius * _slack(delta.dtype), shrunk.to(flat.dtype), flat).view_as(delta)


def l0(delta: Tensor, eps: Radius) -> Tensor:
    """Nearest perturbation of at most eps pixels of (N, C, H, W), else of at most eps coordinates; ties by position."""
    energy = delta.double().square()
    return delta * _largest(_per_pixel(energy), eps, delta)


def l2_box(delta: Tensor, x: Tensor, eps: Radius) -> Tensor:
    """Nearest perturbation with Euclidean length at most eps and ``x`` + it in [0, 1]."""
    flat, low, high = _with_box(delta, x)
    radius, step, room = _column(eps, flat), flat.abs(), torch.where(flat > 0, high, -low)
    # |z_i| = min(s * step_i, room_i) for the s in [0, 1] at which the lengths add up to eps^2. Values reach the box at
    # s = room / step: in that order, the first k stand at the box and the others are s * step.
    at = torch.where(step > 0, room / step, torch.full_like(step, math.inf))
    at, order = at.sort(1)
    held = _exclusive_cumsum(room.gather(1, order).square())
    moving = step.gather(1, order).square().flip(1).cumsum(1).flip(1)
    length_at = held + at.square().where(moving > 0, torch.zeros_like(at)) * moving
    k = (length_at <= radius.square()).sum(1, keepdim=True).clamp(max=flat.shape[1] - 1)
    scale = ((radius.square() - held.gather(1, k)).clamp(min=0) / moving.gather(1, k)).sqrt().nan_to_num(posinf=1.0)
    shrunk = flat.sign() * torch.minimum(step * scale.clamp(max=1), room)
    boxed = flat.clamp(low, high)
    outside = boxed.square().sum(1, keepdim=True) > (radius * _slack(delta.dtype)).square()
    return torch.where(outside, shrunk, boxed).to(delta.dtype).view_as(delta)


def l1_box(delta: Tensor, x: Tensor, eps: Radius) -> Tensor:
    """Nearest perturbation with sum of absolute values at most eps and ``x`` + it in [0, 1].

    With step_i = |delta_i| and room_i the way to the box in the direction of delta_i, the solution is
    |z_i| = min(max(step_i - lam, 0), room_i) for the least lam >= 0 at which the sum is at most eps. As lam grows, the term i
    starts to fall at max(step_i - room_i, 0) and stops at step_i: the sum is linear between the sorted 2d breakpoints.
    """
    flat, low, high = _with_box(delta, x)
    return _l1_box(flat, low, high, _column(eps, flat), _slack(delta.dtype)).to(delta.dtype).view_as(delta)


def l0_box(delta: Tensor, x: Tensor, eps: Radius) -> Tensor:
    """Nearest perturbation of at most eps pixels (or coordinates, see ``l0``) and ``x`` + it in [0, 1]."""
    wanted = delta.double()
    boxed = wanted.clamp(-x.double(), 1 - x.double())
    gain = wanted.square() - (wanted - boxed).square()  # what keeping it saves in squared distance
    return (boxed * _largest(_per_pixel(gain), eps, delta)).to(delta.dtype)


def project(threat: Threat, x: Tensor, x_adv: Tensor) -> Tensor:
    """``Threat.project``: images (N, ...) moved into ball ∩ box; see there."""
    if x.shape != x_adv.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and x_adv {tuple(x_adv.shape)}; they must agree")
    if len(portions := in_portions(x, x_adv)) > 1:
        return torch.cat([project(threat, *portion) for portion in portions])
    eps = threat.eps
    if threat.norm == "union":
        return _nearest([project(part, x, x_adv) for part in threat.parts], x_adv)
    if threat.norm == UNRESTRICTED or math.isinf(eps):
        return x_adv.clamp(0, 1)
    if threat.norm == "linf":
        bound = _upper(eps, x.dtype)
        return torch.clamp(x_adv, (x - bound).clamp_(min=0), (x + bound).clamp_(max=1))
    if threat.norm == "l0":
        delta = x_adv.double() - x.double()
        boxed = x_adv.clamp(0, 1)
        gain = delta.square() - (x_adv.double() - boxed.double()).square()
        return torch.where(_largest(_per_pixel(gain), eps, x), boxed, x)
    if threat.norm == "l2":
        delta = (x_adv - x).flatten(1)
        length = torch.linalg.vector_norm(delta, dim=1, dtype=torch.float64)

        def scaled(rows: Tensor) -> Tensor:
            clean = x.index_select(0, rows)
            scale = (eps / length.index_select(0, rows)).to(x.dtype)[:, None]
            return _towards(clean.flatten(1), delta.index_select(0, rows) * scale).clamp_(0, 1).view_as(clean)

        return _moved(length > eps * _slack(x.dtype), scaled, x_adv.clamp(0, 1))
    boxed = x_adv.clamp(0, 1)
    length = (boxed - x).abs_().flatten(1).sum(1, dtype=torch.float64)

    def nearest(rows: Tensor) -> Tensor:
        clean = x.index_select(0, rows)
        wanted, low, high = _with_box(x_adv.index_select(0, rows).double() - clean.double(), clean)
        found = _l1_box(wanted, low, high, _column(eps, wanted), _slack(torch.float64))
        return _towards(clean.flatten(1), found).clamp_(0, 1).view_as(clean)

    return _moved(length > eps * _slack(x.dtype), nearest, boxed)


def _moved(outside: Tensor, move: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Points (N, ...) with ``move(rows)`` in place of the rows that are ``outside``, (N,) bool; of a search, most are not."""
    rows = outside.nonzero()[:, 0]
    return points.index_copy_(0, rows, move(rows)) if len(rows) else points


def _l1_box(flat: Tensor, low: Tensor, high: Tensor, radius: Tensor, slack: float) -> Tensor:
    """``l1_box`` on float64 (N, d), with box bounds (N, d) and radius (N, 1)."""
    step, room = flat.abs(), torch.where(flat > 0, high, -low)
    boxed = flat.clamp(low, high)
    total = boxed.abs().sum(1, keepdim=True)
    points, order = torch.cat([(step - room).clamp_(min=0), step], 1).sort(1)
    falling = torch.where(order < flat.shape[1], 1.0, -1.0).to(flat.dtype).cumsum(1)  # terms that fall after each point
    drop = falling[:, :-1] * points.diff(dim=1)
    sums = torch.cat([total, total - drop.cumsum(1)], 1)
    # The last breakpoint with a sum above eps; rounding may leave it at the very end, where nothing falls any more.
    last = ((sums > radius).sum(1, keepdim=True) - 1).clamp_(0, points.shape[1] - 2)
    lam = points.gather(1, last) + (sums.gather(1, last) - radius) / falling.gather(1, last).clamp_(min=1)
    shrunk = flat.sign() * torch.minimum((step - lam).clamp_(min=0), room)
    return torch.where(total > radius * slack, shrunk, boxed)


def _l2_scale(flat: Tensor, eps: Radius) -> Tensor:
    """(N, 1) factor of at most 1 that brings (N, d) into the l2 ball; exactly 1 for rows inside."""
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True, dtype=torch.float64)
    radius = _column(eps, flat)
    return torch.where(length > radius * _slack(flat.dtype), radius / length, torch.ones_like(length)).to(flat.dtype)


def _towards(x: Tensor, delta: Tensor) -> Tensor:
    """``x + delta`` in the type of ``x``, rounded towards ``x`` so that no value moves further than ``delta`` says.

    Rounding to nearest can lengthen thousands of small changes in the same direction, and leave the ball.
    """
    origin = x.to(delta.dtype)
    moved = (origin + delta).to(x.dtype)
    too_far = (moved.to(delta.dtype) - origin).abs_().gt_(delta.abs())  # 1 and 0: choosing by bool takes several times as long
    return torch.lerp(moved, torch.nextafter(moved, x), too_far.to(x.dtype))


def _largest(value: Tensor, eps: Radius, like: Tensor) -> Tensor:
    """Bool mask, broadcastable to ``like``: the eps largest of (N, positions), ties by position."""
    order = value.argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    keep = place < (eps[:, None] if isinstance(eps, Tensor) else eps)
    return keep.view(len(like), 1, *like.shape[2:]) if like.dim() == 4 else keep.view_as(like)


def _per_pixel(value: Tensor) -> Tensor:
    """(N, positions): summed over the channels of an image batch."""
    return (value.sum(1) if value.dim() == 4 else value).flatten(1)


def _nearest(candidates: list[Tensor], wanted: Tensor) -> Tensor:
    """For each example the candidate (N, ...) that is nearest to ``wanted``; the first one at a tie."""
    best = candidates[0]
    least = (best.double() - wanted.double()).flatten(1).square().sum(1)
    for other in candidates[1:]:
        distance = (other.double() - wanted.double()).flatten(1).square().sum(1)
        nearer = distance < least
        least = torch.where(nearer, distance, least)
        best = torch.where(nearer.view(-1, *(1,) * (wanted.dim() - 1)), other, best)
    return best


def _with_box(delta: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 (N, d): the perturbation and the least and largest that keep x + it in [0, 1]."""
    origin = x.flatten(1).double()
    return delta.flatten(1).double(), -origin, 1 - origin


def _column(eps: Radius, flat: Tensor) -> Tensor:
    """(N, 1) float64 radii, or a scalar that broadcasts to them."""
    if isinstance(eps, Tensor):
        return eps.to(flat.device, torch.float64).view(-1, 1)
    return torch.full((1, 1), eps, dtype=torch.float64, device=flat.device)


def _upper(eps: float, dtype: torch.dtype) -> float:
    """The least number of the type that is not below ``eps``, so that a point on the boundary is not moved by rounding."""
    if dtype != torch.float32:
        return eps
    rounded = np.float32(eps)
    return float(rounded if float(rounded) >= eps else np.nextafter(rounded, np.float32(np.inf)))


def _slack(dtype: torch.dtype) -> float:
    """Factor by which rounding may leave a projected point too long; projecting twice is then projecting once."""
    return 1 + 2 * torch.finfo(dtype).eps


def _exclusive_cumsum(values: Tensor) -> Tensor:
    return values.cumsum(1) - values

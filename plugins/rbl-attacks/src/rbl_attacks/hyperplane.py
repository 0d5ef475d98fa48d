"""The shortest way to a hyperplane that stays inside the box [0, 1], in linf, l2 and l1 (arXiv:1907.02044)."""

from __future__ import annotations

import torch
from torch import Tensor


def to_hyperplane(x: Tensor, normal: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The smallest steps in ``norm`` with normal . step = -gap and x + step in [0, 1].

    x: (k, N, ...), k points for each of N directions; normal: (N, ...); gap: (k, N). Where the box keeps the hyperplane out of
    reach, the step to the corner that comes nearest. Values with normal 0 do not move. Exact but for rounding.
    """
    origin, slope = x.flatten(2), normal.flatten(1)
    way = -slope.sign() * gap.sign()[..., None]
    weight, room = slope.abs(), (way.clamp_min(0) - origin).abs()
    largest = weight.amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)  # so that no square underflows
    weight, wanted = weight / largest, gap.abs()[..., None] / largest
    if norm == "l1":
        move = _steepest_first(weight, room, wanted)
    else:
        move = _together(weight, room, wanted, rate=weight if norm == "l2" else weight.sign())
    return (way * move).view_as(x)


def _steepest_first(weight: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """Moves of at most ``room`` (k, N, d), on the largest weights (N, d) first, until weight . move is ``wanted`` (k, N, 1)."""
    order = weight.argsort(dim=1, descending=True, stable=True)
    steep, order = weight.gather(1, order), order.expand_as(room)
    free = room.gather(2, order)
    gain = steep * free
    needed = ((wanted - (gain.cumsum(2) - gain)) / steep).nan_to_num(0, torch.finfo(room.dtype).max, 0)
    return torch.empty_like(room).scatter_(2, order, torch.minimum(needed.clamp_min(0), free))


def _together(weight: Tensor, room: Tensor, wanted: Tensor, *, rate: Tensor) -> Tensor:
    """Moves min(t * rate, room) (k, N, d) with the t (k, N, 1) at which weight (N, d) . move is what is wanted (k, N, 1).

    Newton's method from below on a concave function made of straight pieces: values that reach their room stay there and the
    others share what is left, until no further one gets there. That ends after a few rounds, and sorts nothing.
    """
    gain, push, most = weight * room, weight * rate, torch.finfo(room.dtype).max
    t = torch.zeros_like(wanted)
    there, before = (t * rate).ge_(room), None  # 1 where a value is at its room, and 0: as bool this takes twice as long
    while before is None or not torch.equal(there, before):
        left = wanted - (gain * there).sum(2, keepdim=True)
        moving = (push * (1 - there)).sum(2, keepdim=True)
        t = torch.maximum(t, (left / moving).nan_to_num(0, most, 0))
        there, before = (t * rate).ge_(room), there
    return torch.minimum(t * rate, room)

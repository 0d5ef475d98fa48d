"""Losses that attacks climb: per example, higher is more adversarial.

Each takes logits (n, C) and labels (n,) and returns (n,). With logits z, label y and a class t to be reached:

======================  =======================================================  ==========================
cross_entropy           logsumexp(z) - z_y
margin                  max_{k != y} z_k - z_y                                   Carlini & Wagner, 2017
dlr                     -(z_y - max_{k != y} z_k) / (z_(1) - z_(3) + 1e-12)      Croce & Hein, 2020; C >= 3
targeted_cross_entropy  z_t - logsumexp(z)
targeted_dlr            -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)     Croce & Hein, 2020; C >= 4
divergence              KL(softmax(r) || softmax(z)), r: the clean logits        Zhang et al., 2019
======================  =======================================================  ==========================

Of those that searches climb step by step, ``with_slope`` knows the derivative as a formula: beside the passes of a small
network, autograd's many operations on a few logits are much of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[..., Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, as softplus(logsumexp of the other logits - z_y): the same function, with an accurate gradient.

    The usual form takes 1 - p_y as a difference, which in float32 loses all digits where the defense is confident, and with
    them the direction of the gradient: a mask made by rounding alone. This form keeps them up to margins of about 87.
    """
    return F.softplus(_others(logits, y).logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1))


def best_other(logits: Tensor, y: Tensor) -> Tensor:
    """The largest logit of a class other than ``y``."""
    return _others(logits, y).amax(1)


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -float("inf"))


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """By how much the best other class leads the label; positive exactly on misclassified points."""
    return best_other(logits, y) - logits.gather(1, y[:, None]).squeeze(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio: the margin, unchanged by shifts and positive scalings of the logits (arXiv:2003.01690).

    Raises ValueError with fewer than three classes, where the ratio is not defined.
    """
    first, _, third = _largest(logits, 3)[0].unbind(1)
    return margin(logits, y) / (first - third + 1e-12)


def targeted_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy of the class to be reached, negated, so that it rises towards that class."""
    return -cross_entropy(logits, target)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The difference of logits ratio towards one class; as of the label, it is positive only where that is not predicted.

    Raises ValueError with fewer than four classes, where the ratio is not defined.
    """
    first, _, third, fourth = _largest(logits, 4)[0].unbind(1)
    lead = logits.gather(1, target[:, None]).squeeze(1) - logits.gather(1, y[:, None]).squeeze(1)
    return lead / (first - (third + fourth) / 2 + 1e-12)


def _largest(logits: Tensor, count: Literal[3, 4]) -> tuple[Tensor, Tensor]:
    """The largest logits of each row and their classes, (n, count) each: 3 for ``dlr``, 4 for ``targeted_dlr``."""
    if logits.shape[1] < count:
        loss, instead = {3: ("dlr", "margin"), 4: ("targeted dlr", "targeted_cross_entropy")}[count]
        raise ValueError(f"{loss} needs at least {count} classes, not {logits.shape[1]}; use {instead}")
    values, classes = logits.topk(count, dim=1)
    return values, classes


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the prediction from that at other logits (n, C); 0, and flat, where they are equal."""
    expected = reference.log_softmax(1)
    return (expected.exp() * (expected - logits.log_softmax(1))).sum(1)


def with_slope(loss: Loss) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """What returns one of these losses (n,) together with its derivative by the logits (n, C), both without a graph.

    It takes what the loss takes. None for functions whose derivative is left to autograd.
    """
    return next((both for known, both in _WITH_SLOPE if known is loss), None)


def _cross_entropy(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative is p_k, and p_y - 1 for the label, from the loss and not as a difference: see ``cross_entropy``."""
    label = y[:, None]
    rise = logits - logits.gather(1, label)
    value = F.softplus(rise.scatter(1, label, -float("inf")).logsumexp(1, keepdim=True))
    return value[:, 0], rise.sub_(value).exp_().scatter_(1, label, value.neg().expm1_())


def _dlr(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    (first, _, third), (best, second, last) = (torch.split(part, 1, 1) for part in _largest(logits, 3))
    label = y[:, None]
    other = torch.where(best == label, second, best)
    room = (first - third).add_(1e-12)
    value = (logits.gather(1, other) - logits.gather(1, label)) / room
    slope = torch.zeros_like(logits).scatter_(1, last, value).scatter_(1, best, -value)
    slope.scatter_(1, other, 1, reduce="add").scatter_(1, label, -1, reduce="add")
    return value[:, 0], slope.div_(room)


def _targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    largest, at = _largest(logits, 4)
    label, aim = y[:, None], target[:, None]
    room = (largest[:, :1] - largest[:, 2:].mean(1, keepdim=True)).add_(1e-12)
    value = (logits.gather(1, aim) - logits.gather(1, label)) / room
    slope = torch.zeros_like(logits).scatter_(1, at[:, 2:], (value / 2).expand(-1, 2)).scatter_(1, at[:, :1], -value)
    slope.scatter_(1, aim, 1, reduce="add").scatter_(1, label, -1, reduce="add")
    return value[:, 0], slope.div_(room)


_WITH_SLOPE = ((cross_entropy, _cross_entropy), (dlr, _dlr), (targeted_dlr, _targeted_dlr))

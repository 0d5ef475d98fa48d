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
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
    if logits.shape[1] < 3:
        raise ValueError(f"dlr needs at least 3 classes, not {logits.shape[1]}; use margin")
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return margin(logits, y) / (first - third + 1e-12)


def targeted_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy of the class to be reached, negated, so that it rises towards that class."""
    return -cross_entropy(logits, target)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The difference of logits ratio towards one class; as of the label, it is positive only where that is not predicted.

    Raises ValueError with fewer than four classes, where the ratio is not defined.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"targeted dlr needs at least 4 classes, not {logits.shape[1]}; use targeted_cross_entropy")
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    lead = logits.gather(1, target[:, None]).squeeze(1) - logits.gather(1, y[:, None]).squeeze(1)
    return lead / (first - (third + fourth) / 2 + 1e-12)


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the prediction from that at other logits (n, C); 0, and flat, where they are equal."""
    expected = reference.log_softmax(1)
    return (expected.exp() * (expected - logits.log_softmax(1))).sum(1)

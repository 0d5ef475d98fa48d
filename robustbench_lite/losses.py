"""Losses that attacks climb: per example, higher is more adversarial.

Each takes logits (n, C) and labels (n,) and returns (n,). With logits z and label y:

====================  =====================================================  ==========================
cross_entropy         logsumexp(z) - z_y
margin                max_{k != y} z_k - z_y                                 Carlini & Wagner, 2017
dlr                   -(z_y - max_{k != y} z_k) / (z_(1) - z_(3) + 1e-12)    Croce & Hein, 2020; C >= 3
====================  =====================================================  ==========================
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, as softplus(logsumexp of the other logits - z_y): the same function, with an accurate gradient.

    The usual form takes 1 - p_y as a difference, which in float32 loses all digits where the defense is confident, and with
    them the direction of the gradient: a mask made by rounding alone. This form keeps them up to margins of about 87.
    """
    return F.softplus(_others(logits, y).logsumexp(1) - logits.gather(1, y[:, None])[:, 0])


def best_other(logits: Tensor, y: Tensor) -> Tensor:
    """The largest logit of a class other than ``y``."""
    return _others(logits, y).amax(1)


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -float("inf"))


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """By how much the best other class leads the label; positive exactly on misclassified points."""
    return best_other(logits, y) - logits.gather(1, y[:, None])[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio: the margin, unchanged by shifts and positive scalings of the logits (arXiv:2003.01690).

    Raises ValueError with fewer than three classes, where the ratio is not defined.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"dlr needs at least 3 classes, not {logits.shape[1]}; use margin")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)

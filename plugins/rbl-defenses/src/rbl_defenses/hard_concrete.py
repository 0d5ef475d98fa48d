"""Masks of numbers in [0, 1] that can be learned: the hard concrete distribution (Louizos et al., 2018, arXiv:1712.01312)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Temperature, and the interval over which a concrete number is stretched before it is cut to [0, 1].
BETA, LOW, HIGH = 0.66, -0.1, 1.1


def draw(logits: Tensor) -> Tensor:
    """A mask of the shape of ``logits``, from torch's global generator: gradients flow back where it is neither 0 nor 1."""
    u = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    return _stretched(u.logit() + logits)


def mode(logits: Tensor) -> Tensor:
    """The mask without the randomness."""
    return _stretched(logits)


def kept(logits: Tensor) -> Tensor:
    """The probability that an entry of the mask is not 0."""
    return (logits - BETA * math.log(-LOW / HIGH)).sigmoid()


def _stretched(argument: Tensor) -> Tensor:
    return ((argument / BETA).sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)

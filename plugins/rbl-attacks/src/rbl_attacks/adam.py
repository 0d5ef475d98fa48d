"""The steps of Adam (Kingma & Ba, 2015, arXiv:1412.6980)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GUARD = 1e-8  # keeps it from dividing by zero


class Adam:
    """For w (n, ...), each example by itself: who leaves changes nothing for others. decay: of the mean and of the squares.

    corrected: whether both are freed of the zeros that they began with, as published.
    """

    def __init__(self, w: Tensor, decay: tuple[float, float] = (0.9, 0.999), *, corrected: bool = True) -> None:
        self.decay, self.corrected, self.taken = decay, corrected, 0
        self.mean, self.square = torch.zeros_like(w), torch.zeros_like(w)

    def move(self, slope: Tensor, lr: float) -> Tensor:
        """What to subtract, given the gradient (n, ...) of what is to fall."""
        first, second = self.decay
        self.taken += 1
        self.mean.lerp_(slope, 1 - first)
        self.square.mul_(second).addcmul_(slope, slope, value=1 - second)
        start, scale = 1.0, 1.0
        if self.corrected:
            start, scale = 1 - first**self.taken, math.sqrt(1 - second**self.taken)
        return self.mean * (lr * scale / start) / (self.square.sqrt() + GUARD * scale)

    def keep(self, alive: Tensor) -> None:
        """Forget the examples that left."""
        self.mean, self.square = self.mean[alive], self.square[alive]

"""A network whose first class nothing beats, and whose gradients turn wherever one goes."""

from __future__ import annotations

import torch
from torch import nn


def never_beaten(values: int, classes: int) -> nn.Module:
    """For images of so many values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        last = nn.Linear(8, classes)
        model = nn.Sequential(nn.Flatten(), nn.Linear(values, 8), nn.Tanh(), last).eval()
    with torch.no_grad():
        last.bias[0] += 20
    return model

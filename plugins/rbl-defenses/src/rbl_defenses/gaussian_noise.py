"""Gaussian noise at test time: the simplest stochastic defense (compare arXiv:1902.02918, which certifies a smoothed one)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from rbl_defenses.behind import Behind
from robustbench_lite import DatasetInfo, randn_like


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Add N(0, sigma^2) to every pixel before the base defense sees the image; not clipped to [0, 1].

    base: the defense that classifies. sigma: standard deviation, in units of the pixel range.
    """

    base: str = "standard"
    sigma: Annotated[float, Field(ge=0)] = 0.1

    def __call__(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        """The module; it draws anew in every pass."""
        return Behind(base, lambda x: x + self.sigma * randn_like(x))

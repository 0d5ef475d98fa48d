"""Feature squeezing (Xu, Evans & Qi, 2018, arXiv:1704.01155): leave an attacker fewer values to choose from.

The paper compares a model's answers with and without squeezing to detect attacks; here the squeezed image is simply classified.
Rounding has a zero gradient, so attacks use that of the identity instead (BPDA, arXiv:1802.00420). Under it the defense is
expected to add little: it stands here because it is short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from robustbench_lite import DatasetInfo, bpda


@dataclass(frozen=True, kw_only=True)
class FeatureSqueezing:
    """Round to fewer grey levels, take the median of each window, and let the base defense classify.

    base: the defense that classifies. bits: grey levels are 2 ** bits. window: side of the median filter in pixels; 1 for none.
    """

    base: str = "rbl/standard"
    bits: Annotated[int, Field(ge=1, le=8)] = 3
    window: Literal[1, 3, 5] = 1

    def __call__(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        """The module. The core builds the base defense, with its weights, and passes it in."""
        return Squeezed(base, self.bits, self.window)


class Squeezed(nn.Module):
    """The base defense behind squeezing. ``surrogate`` has the same logits, and the base's gradient at the squeezed image."""

    def __init__(self, base: nn.Module, bits: int, window: int) -> None:
        super().__init__()
        self.base = base
        self.bits = bits
        self.window = window
        self._through = bpda(self.squeeze, "identity")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(self.squeeze(x))
        return logits

    def surrogate(self, x: Tensor) -> Tensor:
        """Straight through the squeezing, and through the base's own surrogate where it has one."""
        logits: Tensor = getattr(self.base, "surrogate", self.base)(self._through(x))
        return logits

    def squeeze(self, x: Tensor) -> Tensor:
        """Images (n, C, H, W) in [0, 1] with 2 ** bits grey levels, after the median filter."""
        steps = 2**self.bits - 1
        rounded: Tensor = (x * steps).round() / steps
        if self.window == 1:
            return rounded
        reach, side = self.window // 2, self.window
        padded = F.pad(rounded, (reach,) * 4, mode="reflect")
        middle: Tensor = padded.unfold(2, side, 1).unfold(3, side, 1).flatten(-2).median(-1).values
        return middle

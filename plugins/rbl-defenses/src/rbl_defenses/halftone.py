"""Halftoning: an image as dots whose density carries its brightness (Huang, Liao and Huang, ICPR 2020).

Also Lo and Patel, ICIP 2021, arXiv:2101.09451. The patterns are the standard ones: error diffusion of Floyd and Steinberg
(1976), of Jarvis, Judice and Ninke (1976) and of Stucki (1981), and the ordered dither of Bayer (1973). How the first paper
joins the two images to its hybrid is not known here; the mean of the logits is a reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.behind import Behind, TrainedBehind, through
from robustbench_lite import DatasetInfo, bpda

Method = Literal["floyd-steinberg", "jarvis", "stucki", "bayer"]

# Where the error of a pixel goes: (rows down, columns ahead, share), and of what number of shares.
KERNELS: dict[str, tuple[int, tuple[tuple[int, int, int], ...]]] = {
    "floyd-steinberg": (16, ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1))),
    "jarvis": (
        48,
        (
            *((0, 1, 7), (0, 2, 5)),
            *((1, -2, 3), (1, -1, 5), (1, 0, 7), (1, 1, 5), (1, 2, 3)),
            *((2, -2, 1), (2, -1, 3), (2, 0, 5), (2, 1, 3), (2, 2, 1)),
        ),
    ),
    "stucki": (
        42,
        (
            *((0, 1, 8), (0, 2, 4)),
            *((1, -2, 2), (1, -1, 4), (1, 0, 8), (1, 1, 4), (1, 2, 2)),
            *((2, -2, 1), (2, -1, 2), (2, 0, 4), (2, 1, 2), (2, 2, 1)),
        ),
    ),
}
BAYER = ((0, 8, 2, 10), (12, 4, 14, 6), (3, 11, 1, 9), (15, 7, 13, 5))


@dataclass(frozen=True, kw_only=True)
class Halftone:
    """Turn each channel into black and white dots before the base defense sees the image.

    base: the defense that classifies. method: three error diffusions, and ``bayer``, 4x4 ordered dither. serpentine: error
    diffusion goes along every other row backwards. dots: each pixel becomes dots x dots dots, and what is shown is their
    mean, so that the size of the image stays; 1 for an image of dots. hybrid: the mean of the base's logits on the image
    and on its dots.
    """

    base: str = "standard"
    method: Method = "floyd-steinberg"
    serpentine: bool = False
    dots: Annotated[int, Field(ge=1, le=8)] = 1
    hybrid: bool = False

    def __post_init__(self) -> None:
        if self.serpentine and self.method not in KERNELS:
            raise ValueError(f"serpentine=true is for error diffusion, and {self.method} diffuses none")

    def __call__(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        """The module. Its ``surrogate`` passes gradients straight through the dots (BPDA)."""

        def transform(x: Tensor) -> Tensor:
            return density(x, self.method, self.serpentine, self.dots)

        return (Hybrid if self.hybrid else Behind)(base, transform, bpda(transform, "identity"))


@dataclass(frozen=True, kw_only=True)
class HalftoneTraining(TrainedBehind):
    """Another method, whose network sees halftones from the start: in training, inner attacks included, and in use.

    method: that one. pattern: ``method`` of ``halftone``. serpentine, dots, hybrid: as there.
    """

    method: str = "standard"
    pattern: Method = "floyd-steinberg"
    serpentine: bool = False
    dots: Annotated[int, Field(ge=1, le=8)] = 1
    hybrid: bool = False

    def wrapper(self) -> Halftone:
        return Halftone(method=self.pattern, serpentine=self.serpentine, dots=self.dots, hybrid=self.hybrid)


class Hybrid(Behind):
    """The mean of the base's logits on the transformed image and on the image itself."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (super().forward(x) + self.base(x)) / 2
        return logits

    def surrogate(self, x: Tensor) -> Tensor:
        return (super().surrogate(x) + through(self.base)(x)) / 2


def density(x: Tensor, method: Method, serpentine: bool, dots: int) -> Tensor:
    """Halftones of images (n, C, H, W) in [0, 1], each channel by itself: per pixel, the share of white of dots x dots dots."""
    fine = x.repeat_interleave(dots, 2).repeat_interleave(dots, 3)
    pattern = diffuse(fine, method, serpentine) if method in KERNELS else ordered(fine)
    return pattern if dots == 1 else F.avg_pool2d(pattern, dots)


def ordered(x: Tensor) -> Tensor:
    """White where a value exceeds the threshold of its place in a 4x4 tile."""
    height, width = x.shape[2:]
    tile = (torch.tensor(BAYER, dtype=x.dtype, device=x.device) + 0.5) / 16
    return (x > tile.repeat(-(-height // 4), -(-width // 4))[:height, :width]).to(x.dtype)


def diffuse(x: Tensor, method: str, serpentine: bool) -> Tensor:
    """White where a value is at least 1/2; what that is off by is shared out among the pixels that are still to come.

    Error that would leave the image is dropped. Pixel by pixel, row by row.
    """
    shares, kernel = KERNELS[method]
    rest = x.permute(2, 3, 0, 1).clone()  # (H, W, n, C)
    height, width = rest.shape[:2]
    for row in range(height):
        backwards = serpentine and row % 2 == 1
        for column in reversed(range(width)) if backwards else range(width):
            value = rest[row, column]
            dot = (value >= 0.5).to(x.dtype)
            error = (value - dot) / shares
            rest[row, column] = dot
            for down, ahead, weight in kernel:
                there = column - ahead if backwards else column + ahead
                if row + down < height and 0 <= there < width:
                    rest[row + down, there].add_(error, alpha=weight)
    return rest.permute(2, 3, 0, 1).contiguous()

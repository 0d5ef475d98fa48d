"""JPEG compression as a defense (Guo et al., 2018, arXiv:1711.00117; Dziugaite et al., 2016, arXiv:1608.00853)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from robustbench_lite import DatasetInfo, bpda

# Annex K of the JPEG standard (ITU-T T.81): quantisation tables for luminance and chrominance at quality 50.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)


@dataclass(frozen=True, kw_only=True)
class JPEG:
    """Compress and decompress each image before the base defense sees it.

    base: the defense that classifies. quality: 1 to 100, as libjpeg scales its tables.
    """

    base: str = "standard"
    quality: Annotated[int, Field(ge=1, le=100)] = 50

    def __call__(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        """The module; images with 1 or 3 channels."""
        if info.shape[0] not in (1, 3):
            raise ValueError(f"JPEG compresses images of 1 or 3 channels, not {info.shape[0]}")
        return Compressed(base, self.quality)


class Compressed(nn.Module):
    """The base defense behind JPEG. ``surrogate`` has the same logits, and the base's gradient at the compressed image."""

    def __init__(self, base: nn.Module, quality: int) -> None:
        super().__init__()
        self.base = base
        self.quality = quality
        self._through = bpda(lambda x: compress(x, quality), "identity")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(compress(x, self.quality))
        return logits

    def surrogate(self, x: Tensor) -> Tensor:
        """Straight through the compression, and through the base's own surrogate where it has one."""
        logits: Tensor = getattr(self.base, "surrogate", self.base)(self._through(x))
        return logits


def compress(x: Tensor, quality: int) -> Tensor:
    """What is left of images (n, 1 or 3, H, W) in [0, 1] after JPEG at a quality: no chroma subsampling (4:4:4).

    Rounding at every step as the standard has it, so the gradient is zero almost everywhere.
    """
    n, channels, height, width = x.shape
    levels = (x * 255).round().clamp(0, 255)
    planes = levels if channels == 1 else to_ycbcr(levels).round().clamp(0, 255)
    padded = F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
    tables = torch.stack([table(c, quality, x.device) for c in range(channels)])[None, :, None, :, None, :]
    basis = dct_basis(x.device)
    blocks = padded.reshape(n, channels, padded.shape[2] // 8, 8, padded.shape[3] // 8, 8) - 128
    coefficients = torch.einsum("ui,ncaibj,vj->ncaubv", basis, blocks, basis)
    kept = (coefficients / tables).round() * tables
    decoded = torch.einsum("ui,ncaubv,vj->ncaibj", basis, kept, basis) + 128
    planes = decoded.reshape(padded.shape)[..., :height, :width].round().clamp(0, 255)
    return (planes if channels == 1 else to_rgb(planes).round().clamp(0, 255)) / 255


def to_ycbcr(rgb: Tensor) -> Tensor:
    """RGB (n, 3, H, W) in [0, 255] as Y, Cb, Cr (ITU-R BT.601, full range, as JFIF has it)."""
    r, g, b = rgb.unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return torch.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], 1)


def to_rgb(ycbcr: Tensor) -> Tensor:
    """The inverse of ``to_ycbcr``."""
    y, cb, cr = ycbcr.unbind(1)
    r, b = y + 1.402 * (cr - 128), y + 1.772 * (cb - 128)
    return torch.stack([r, (y - 0.299 * r - 0.114 * b) / 0.587, b], 1)


@lru_cache(maxsize=64)
def table(channel: int, quality: int, device: torch.device) -> Tensor:
    """(8, 8) quantisation table of a channel, scaled as libjpeg does: 5000 / q below quality 50, else 200 - 2 q percent."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor(LUMINANCE if channel == 0 else CHROMINANCE)
    return ((base * percent + 50) // 100).clamp(1, 255).float().to(device)


@lru_cache(maxsize=8)
def dct_basis(device: torch.device) -> Tensor:
    """(8, 8) orthonormal DCT-II: row u is the cosine of frequency u."""
    rows = [[math.cos((2 * i + 1) * u * math.pi / 16) * (0.5 if u else math.sqrt(0.125)) for i in range(8)] for u in range(8)]
    return torch.tensor(rows).to(device)

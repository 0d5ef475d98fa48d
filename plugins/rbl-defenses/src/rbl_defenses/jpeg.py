"""JPEG compression as a defense (Guo et al., 2018, arXiv:1711.00117; Dziugaite et al., 2016, arXiv:1608.00853).

The arithmetic is libjpeg's: integers throughout, with the slow-but-accurate cosine transform of Loeffler, Ligtenberg and
Moschytz ("Practical fast 1-D DCT algorithms with 11 multiplications", ICASSP 1989) in two passes with 13 bits of fraction. So
the images are those that libjpeg makes, to the last bit. Integers below 2^53 are exact in float64 in any order of summation:
they are also the same on every device and in every batch. Rounding in floating point would not be: ties are frequent, and one
that falls the other way moves a coefficient by a whole step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.behind import Behind
from robustbench_lite import DatasetInfo, UsageError, bpda

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

# Bits of fraction: of the transform's constants, of what its first pass hands to the second, and of the colour transform.
CONSTANT_BITS, PASS_BITS, COLOUR_BITS = 13, 2, 16

# Rows Y, Cb, Cr (ITU-R BT.601, full range, as JFIF has it) of R, G, B; and R, G, B of Y, Cb - 128, Cr - 128.
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.34414, -0.71414), (1.0, 1.772, 0.0))


@dataclass(frozen=True, kw_only=True)
class JPEG:
    """Compress and decompress each image before the base defense sees it.

    base: the defense that classifies. quality: 1 to 100, as libjpeg scales its tables.
    """

    base: str = "standard"
    quality: Annotated[int, Field(ge=1, le=100)] = 50

    def __call__(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        """The module; its ``surrogate`` passes gradients straight through the compression.

        Raises UsageError for images of other than 1 or 3 channels.
        """
        if info.shape[0] not in (1, 3):
            raise UsageError(f"jpeg compresses images of 1 or 3 channels, and {info.name} has {info.shape[0]}")

        def compressed(x: Tensor) -> Tensor:
            return compress(x, self.quality)

        return Behind(base, compressed, bpda(compressed, "identity"))


def compress(x: Tensor, quality: int) -> Tensor:
    """What is left of images (n, 1 or 3, H, W) in [0, 1] after JPEG at a quality: no chroma subsampling (4:4:4).

    Images are rounded to 256 levels first, and edges repeated up to whole blocks of 8x8. Everything is rounded as libjpeg does,
    so the gradient is zero almost everywhere.
    """
    n, channels, height, width = x.shape
    levels = (x.double() * 255).round().clamp(0, 255)
    planes = levels if channels == 1 else to_ycbcr(levels)
    padded = F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate") - 128
    blocks = padded.reshape(n, channels, padded.shape[2] // 8, 8, padded.shape[3] // 8, 8).transpose(3, 4).contiguous()
    # Coefficients come out of the transform eight times too large, hence eight times the table.
    tables = torch.stack([table(c, quality, x.device) for c in range(channels)])[:, None, None]
    coefficients = transform(blocks)
    kept = ((coefficients.abs() + 4 * tables) / (8 * tables)).floor() * coefficients.sign()
    decoded = inverse_transform(kept * tables).transpose(3, 4).reshape(padded.shape) + 128
    planes = decoded[..., :height, :width].clamp(0, 255)
    return ((planes if channels == 1 else to_rgb(planes)) / 255).to(x.dtype)


def transform(blocks: Tensor) -> Tensor:
    """Eight times the two-dimensional DCT-II of blocks (..., 8, 8) of whole numbers: along rows, then columns, both rounded."""
    m = cosines(blocks.device).T
    rows = descale(torch.matmul(blocks, m), CONSTANT_BITS - PASS_BITS)
    return descale(torch.matmul(rows.mT.contiguous(), m), CONSTANT_BITS + PASS_BITS).mT


def inverse_transform(coefficients: Tensor) -> Tensor:
    """The inverse two-dimensional DCT of blocks (..., 8, 8) of whole numbers: along columns, then rows, both rounded."""
    m = cosines(coefficients.device)
    columns = descale(torch.matmul(coefficients.mT.contiguous(), m), CONSTANT_BITS - PASS_BITS)
    return descale(torch.matmul(columns.mT.contiguous(), m), CONSTANT_BITS + PASS_BITS + 3)


def descale(x: Tensor, bits: int) -> Tensor:
    """Whole numbers divided by 2^bits and rounded, halves upwards: adding a half and shifting, in float64."""
    return (x / (1 << bits) + 0.5).floor()


def to_ycbcr(rgb: Tensor) -> Tensor:
    """RGB (n, 3, H, W) of whole numbers in [0, 255] as Y, Cb, Cr."""
    half = 1 << (COLOUR_BITS - 1)
    # libjpeg rounds the halves of Cb and Cr downwards, which keeps them at 255 at most.
    offset = rgb.new_tensor([half, 256 * half + half - 1, 256 * half + half - 1]).view(3, 1, 1)
    return ((_mixed(fixed(TO_YCBCR, COLOUR_BITS, rgb.device), rgb) + offset) / (1 << COLOUR_BITS)).floor()


def to_rgb(ycbcr: Tensor) -> Tensor:
    """The inverse of ``to_ycbcr``, up to rounding; in [0, 255]."""
    centred = ycbcr - ycbcr.new_tensor([0, 128, 128]).view(3, 1, 1)
    return descale(_mixed(fixed(TO_RGB, COLOUR_BITS, ycbcr.device), centred), COLOUR_BITS).clamp(0, 255)


def _mixed(matrix: Tensor, planes: Tensor) -> Tensor:
    """A matrix (3, 3) applied to the channels of (n, 3, H, W)."""
    return torch.matmul(matrix, planes.flatten(2)).reshape(planes.shape)


@lru_cache(maxsize=16)
def fixed(matrix: tuple[tuple[float, ...], ...], bits: int, device: torch.device) -> Tensor:
    """A matrix in fixed point: entries times 2^bits, rounded; float64."""
    return (torch.tensor(matrix, dtype=torch.float64) * (1 << bits)).round().to(device)


@lru_cache(maxsize=8)
def cosines(device: torch.device) -> Tensor:
    """(8, 8) float64: row u of the DCT-II, times sqrt(8) 2^13, as the flow graph of Loeffler et al. computes it.

    The flow graph is linear until it rounds, so it is a matrix. Its entries are sums of rounded constants, and may therefore be
    one or two off the rounded cosines.
    """

    def c(value: float) -> int:
        return round(value * (1 << CONSTANT_BITS))

    columns = []
    for unit in torch.eye(8, dtype=torch.int64).tolist():
        sums, differences = [unit[i] + unit[7 - i] for i in range(4)], [unit[i] - unit[7 - i] for i in range(4)]
        outer, inner = sums[0] - sums[3], sums[1] - sums[2]
        turned = (outer + inner) * c(0.541196100)
        # The odd half: each output is one product of an input, and two of the sums of two inputs.
        d0, d1, d2, d3 = differences
        both = (d3 + d1 + d2 + d0) * c(1.175875602)
        first, second = (d3 + d0) * c(-0.899976223), (d2 + d1) * c(-2.562915447)
        third, fourth = (d3 + d1) * c(-1.961570560) + both, (d2 + d0) * c(-0.390180644) + both
        columns.append(
            [
                sum(sums) * c(1),
                d0 * c(1.501321110) + first + fourth,
                turned + outer * c(0.765366865),
                d1 * c(3.072711026) + second + third,
                (sums[0] + sums[3] - sums[1] - sums[2]) * c(1),
                d2 * c(2.053119869) + second + fourth,
                turned - inner * c(1.847759065),
                d3 * c(0.298631336) + first + third,
            ]
        )
    return torch.tensor(columns, dtype=torch.float64).T.contiguous().to(device)


@lru_cache(maxsize=64)
def table(channel: int, quality: int, device: torch.device) -> Tensor:
    """(8, 8) quantisation table of a channel, scaled as libjpeg does: 5000 / q below quality 50, else 200 - 2 q percent."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor(LUMINANCE if channel == 0 else CHROMINANCE)
    return ((base * percent + 50) // 100).clamp(1, 255).double().to(device)

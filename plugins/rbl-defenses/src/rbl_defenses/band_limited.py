"""Band-limited convolutions (Dziedzic et al., 2019, arXiv:1911.09287): high frequencies are left out, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.surgery import Wrapped, plain_convolutions, wrap
from robustbench_lite import DatasetInfo, UsageError
from robustbench_lite.training import Around


class BandLimited(Wrapped):
    """A convolution whose spectrum is cut off: of each half axis, the share ``keep`` of the lowest frequencies remains.

    The authors multiply the truncated spectra of a padded map and of the filter. That is the full convolution followed by the
    orthogonal projection onto the frequencies that remain. A projection is its own adjoint, so that gradients, too, are what
    truncated spectra give. A rectangle of frequencies is one projection along each axis, of which only what a convolution of
    that padding and stride puts out is computed.
    """

    def __init__(self, wrapped: nn.Module, keep: float) -> None:
        super().__init__(wrapped)
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        layer = cast(nn.Conv2d, self.wrapped)
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        around = [int(p) for p in layer.padding]
        full = [p + r for p, r in zip(around, reach, strict=True)]
        spread = F.conv2d(x, layer.weight, None, 1, full, layer.dilation, layer.groups)
        rows, columns = (
            low_pass(size, self.keep)[r : size - r : step].to(spread)
            for size, r, step in zip(spread.shape[2:], reach, layer.stride, strict=True)
        )
        limited: Tensor = rows @ spread @ columns.T
        return limited if layer.bias is None else limited + layer.bias.view(-1, 1, 1)


@cache
def low_pass(size: int, keep: float) -> Tensor:
    """(size, size) the projection onto a share of the lowest frequencies, at least the constant one, of a periodic axis."""
    half = size // 2 + 1
    spectrum = torch.fft.rfft(torch.eye(size, dtype=torch.float64), dim=0)
    spectrum[max(1, round(keep * half)) :] = 0
    projection: Tensor = torch.fft.irfft(spectrum, n=size, dim=0)
    return projection


@dataclass(frozen=True, kw_only=True)
class BandLimitedTraining(Around):
    """Another method, with all convolutions of its network band-limited, in use as in training.

    The authors' other criterion, a share of the energy of each map, is not here: what an image is answered would depend on its
    batch.

    method: that one. keep: share of each half axis of frequencies that remains; 1 for all.
    """

    method: str = "standard"
    keep: Annotated[float, Field(gt=0, le=1)] = 0.75

    def architecture(self, info: DatasetInfo) -> nn.Module:
        model = super().architecture(info)
        if self.keep < 1:
            if any(
                layer.padding_mode != "zeros" or isinstance(layer.padding, str)
                for layer in plain_convolutions(model, self.method)
            ):
                raise UsageError(
                    f"{self.method} has convolutions that do not pad with a number of zeros", hint="name another method"
                )
            wrap(model, nn.Conv2d, lambda layer: BandLimited(layer, self.keep))
        return model

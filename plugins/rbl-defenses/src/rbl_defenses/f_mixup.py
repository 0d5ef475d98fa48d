"""f-mixup as augmentation (Li et al., ICPR 2020): the high frequencies of another image mixed into each one.

A reconstruction: only the abstract was at hand, which describes it as an attack, and training against it as a remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from robustbench_lite import DatasetInfo
from robustbench_lite.training import Context


@dataclass(frozen=True, kw_only=True)
class FMixup(ImageDefense):
    """CE(f(x), y) + weight CE(f(x~), y), x~ with a share of its high frequencies from another image of the batch.

    weight: of the loss at x~. share: of these frequencies at most; it is uniform between 0 and that, for each image. cutoff:
    beyond which a frequency is high, in periods per image; None for 2 on digits and an eighth of the smaller side elsewhere.
    """

    weight: Annotated[float, Field(ge=0)] = 1.0
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    cutoff: Annotated[float, Field(ge=0)] | None = None

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        if not self.weight:
            return F.cross_entropy(model(x), y)
        mixed = context.once("mixed", lambda: self.mixed(x, context.info))
        # One batch of both, so that batch norm in training sees what it will see in use.
        clean, other = model(torch.cat([x, mixed])).split(len(x))
        return F.cross_entropy(clean, y) + self.weight * F.cross_entropy(other, y)

    def mixed(self, x: Tensor, info: DatasetInfo) -> Tensor:
        """Images (n, C, H, W), in the box, each mixed with another of the batch; with itself where chance has it so."""
        partner, share = torch.randperm(len(x), device=x.device), self.share * torch.rand(len(x), device=x.device)
        usual = 2.0 if info.name == "digits" else min(info.shape[1:]) / 8
        cutoff = usual if self.cutoff is None else self.cutoff
        return mix_high(x, x[partner], share, cutoff).clamp(0, 1)


def mix_high(x: Tensor, other: Tensor, share: Tensor, cutoff: float) -> Tensor:
    """Images (n, C, H, W) whose frequencies beyond a cutoff, in periods per image, are a mixture with those of others.

    share: (n,) of the others in it. Nothing is clipped.
    """
    height, width = x.shape[2:]
    vertical, horizontal = (
        frequency(size, 1 / size, device=x.device)
        for frequency, size in ((torch.fft.fftfreq, height), (torch.fft.rfftfreq, width))
    )
    high = (torch.hypot(vertical[:, None], horizontal) > cutoff) * share.view(-1, 1, 1, 1)
    # The transform is linear: what is added is the high part of the difference.
    added: Tensor = torch.fft.irfft2(torch.fft.rfft2(other - x) * high, s=(height, width))
    return x + added

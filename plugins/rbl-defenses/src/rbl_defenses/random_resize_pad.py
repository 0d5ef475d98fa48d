"""Random resizing and padding (Xie et al., 2018, arXiv:1711.01991)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.behind import Behind
from robustbench_lite import DatasetInfo, rand_like


@dataclass(frozen=True, kw_only=True)
class RandomResizePad:
    """Enlarge each image by chance and put it at a random place on black, before the base defense sees it.

    base: the defense that classifies. ratio: of the padded image's sides to the image's; None for 1.25 up to 16 pixels (8
    pixels become 8, 9 or 10 of 10) and 1.125 beyond (32 become 32 to 36 of 36). restore: bring the padded image back to the
    original size, for networks that take no other; the paper's networks do. flip: mirror half of the images.

    The paper averages several draws. Here the protocol does, for attacks and for judging.
    """

    base: str = "standard"
    ratio: Annotated[float, Field(gt=1, le=4)] | None = None
    restore: bool = True
    flip: bool = False

    def __call__(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        """The module; it draws anew in every pass."""
        ratio = self.ratio or (1.25 if max(info.shape[1:]) <= 16 else 1.125)
        return Behind(base, lambda x: resize_and_pad(x, ratio, self.restore, self.flip))


def resize_and_pad(x: Tensor, ratio: float, restore: bool, flip: bool) -> Tensor:
    """Images (n, C, H, W), each resized (nearest) and padded with 0 by numbers of its own."""
    height, width = x.shape[2:]
    grown, right, down, mirror = rand_like(x.new_empty(len(x), 4)).unbind(1)
    columns, wide = _placed(width, max(width + 1, round(ratio * width)), grown, right)
    rows, high = _placed(height, max(height + 1, round(ratio * height)), grown, down)
    if flip:
        columns, wide = (torch.where(mirror[:, None] < 0.5, t.flip(1), t) for t in (columns, wide))
    n, channels = x.shape[:2]
    found = x.gather(2, rows[:, None, :, None].expand(n, channels, -1, width))
    found = found.gather(3, columns[:, None, None, :].expand(n, channels, found.shape[2], -1))
    padded = found * (high[:, None, :, None] & wide[:, None, None, :])
    return F.interpolate(padded, (height, width), mode="bilinear", align_corners=False) if restore else padded


def _placed(side: int, padded: int, grown: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """For each of ``padded`` places along a side: the pixel shown there (n, padded), and whether there is one."""
    size = side + (grown * (padded - side + 1)).long()
    place = torch.arange(padded, device=grown.device) - (offset * (padded - size + 1)).long()[:, None]
    inside = (place >= 0) & (place < size[:, None])
    return (place * side // size[:, None]).clamp(0, side - 1), inside

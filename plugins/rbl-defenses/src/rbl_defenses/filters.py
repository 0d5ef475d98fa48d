"""Filters of images (n, C, H, W) that treat every image by itself: what defenses smooth their input with.

All have a gradient almost everywhere, but for ``quantise``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def quantise(x: Tensor, levels: int | Tensor) -> Tensor:
    """Values rounded to ``levels`` >= 2 equal steps from 0 to 1, halves to even; one number, or one (n, 1, 1, 1) per image."""
    return (x * (levels - 1)).round() / (levels - 1)


def median(x: Tensor, size: int) -> Tensor:
    """The median of size x size pixels, per channel; edges are mirrored. As ``scipy.ndimage.median_filter`` has it.

    Of an even number of pixels the upper of the two in the middle. Windows of even size reach one pixel further up and left.
    """
    windows = mirrored(x, size // 2, (size - 1) // 2).unfold(2, size, 1).unfold(3, size, 1)
    return windows.flatten(4).kthvalue(size * size // 2 + 1, dim=4).values


def mean(x: Tensor, size: int) -> Tensor:
    """The mean of size x size pixels, per channel; as ``median``."""
    return F.avg_pool2d(mirrored(x, size // 2, (size - 1) // 2), size, stride=1)


def gaussian(x: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blur with a gaussian of ``sigma`` (n, 1, 1, 1) pixels for each image, cut off after ``reach`` pixels; edges mirrored."""
    offsets = range(-reach, reach + 1)
    weights = [torch.exp(-0.5 * (offset / sigma) ** 2) for offset in offsets]
    total = torch.stack(weights).sum(0)
    for axis in (2, 3):
        padded, side = mirrored(x, reach, reach, (axis,)), x.shape[axis]
        x = sum((w * padded.narrow(axis, k, side) for k, w in enumerate(weights)), torch.zeros_like(x)) / total
    return x


def non_local_means(x: Tensor, search: int, patch: int, strength: float) -> Tensor:
    """Each pixel as the mean of those around it whose neighbourhoods look alike (Buades et al., CVPR 2005).

    A pixel q of the search x search around p weighs exp(-d^2 / h^2), with d^2 the mean squared difference of their
    neighbourhoods of patch x patch pixels over all channels, and h = strength / 255. Both sizes are odd; edges are mirrored.
    """
    reach, half, (height, width) = search // 2, patch // 2, x.shape[2:]
    padded = mirrored(x, reach + half, reach + half)
    centre = padded[:, :, reach : reach + height + 2 * half, reach : reach + width + 2 * half]
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for down in range(search):
        for right in range(search):
            there = padded[:, :, down : down + height + 2 * half, right : right + width + 2 * half]
            distance = F.avg_pool2d((there - centre).square().mean(1, keepdim=True), patch, stride=1)
            weight = torch.exp(-distance * (255 / strength) ** 2)
            total = total + weight * there[:, :, half : half + height, half : half + width]
            weights = weights + weight
    return total / weights


def mirrored(x: Tensor, before: int, after: int, axes: tuple[int, ...] = (2, 3)) -> Tensor:
    """Images that go on as their mirror image beyond each edge, edge pixels repeated, however far."""
    for axis in axes:
        side = x.shape[axis]
        place = torch.arange(-before, side + after, device=x.device) % (2 * side)
        x = x.index_select(axis, torch.where(place < side, place, 2 * side - 1 - place))
    return x

"""Random translation and mirroring."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(x: Tensor, *, shift: int, flip: bool) -> Tensor:
    """Translate each image by up to ``shift`` pixels with zero padding, and mirror it with probability 1/2 if ``flip``.

    x: (n, C, H, W). Draws from torch's global generator.
    """
    n, _, height, width = x.shape
    if shift:
        padded = F.pad(x, (shift,) * 4)
        down, right = torch.randint(0, 2 * shift + 1, (2, n))
        rows = (down[:, None] + torch.arange(height))[:, None, :, None]
        columns = (right[:, None] + torch.arange(width))[:, None, None, :]
        x = padded[torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None], rows, columns]
    if flip:
        x = torch.where((torch.rand(n) < 0.5)[:, None, None, None], x.flip(3), x)
    return x

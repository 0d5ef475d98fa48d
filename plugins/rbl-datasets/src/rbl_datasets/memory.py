"""A split that is held in memory as it was stored: bytes stay bytes until an image is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class InMemory:
    """images: (n, C, H, W), uint8 in [0, 255] or float in [0, 1]; labels: (n,) integers."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._images = images
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.batch([index])
        return x[0], int(y[0])

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) float32 in [0, 1] and labels (n,) int64, in one step."""
        chosen = np.asarray(indices, dtype=np.int64)
        images = self._images[chosen]
        x = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
        return (x / 255 if images.dtype == np.uint8 else x), torch.from_numpy(self._labels[chosen].astype(np.int64))

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, in [0, 1], rounded to four digits; a deviation is at least 0.0001."""
        scale = 255.0 if self._images.dtype == np.uint8 else 1.0
        per_image = self._images.reshape(*self._images.shape[:2], -1)
        mean = per_image.mean(axis=(0, 2), dtype=np.float64)
        # The mean of the squares, image by image: the images themselves may be too many to square at once.
        square = sum(np.square(i, dtype=np.float64).sum(axis=1) for i in per_image) / (len(per_image) * per_image.shape[2])
        std = np.sqrt(np.maximum(square - mean**2, 1e-12))
        return tuple(round(float(m) / scale, 4) for m in mean), tuple(max(round(float(s) / scale, 4), 1e-4) for s in std)

"""Networks that trained defenses share: [0, 1] NCHW in, logits out, normalisation inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustbench_lite import DatasetInfo


class Normalise(nn.Module):
    """(x - mean) / std per channel, with the data set's statistics; nothing where it states none."""

    def __init__(self, info: DatasetInfo) -> None:
        super().__init__()
        channels = info.shape[0]
        mean, std = info.mean or (0.0,) * channels, info.std or (1.0,) * channels
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.get_buffer("mean")) / self.get_buffer("std")


def small_cnn(info: DatasetInfo, width: int = 16, head: int = 64) -> nn.Module:
    """Three 3x3 convolutions with batch norm (width, 2 width, 2 width channels) and two linear layers.

    The second convolution halves the image, the third does where it is larger than 16 pixels: 8x8 digits end as 4x4 maps,
    28x28 and 32x32 images as 7x7 and 8x8 maps.
    """
    channels, height, columns = info.shape
    stride = 2 if min(height, columns) > 16 else 1

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    features = nn.Sequential(
        Normalise(info),
        *block(channels, width, 1),
        *block(width, 2 * width, 2),
        *block(2 * width, 2 * width, stride),
        nn.Flatten(),
    )
    with torch.no_grad():
        size = features.eval()(torch.zeros(1, *info.shape)).shape[1]
    return nn.Sequential(features.train(), nn.Linear(size, head), nn.ReLU(), nn.Linear(head, info.num_classes))

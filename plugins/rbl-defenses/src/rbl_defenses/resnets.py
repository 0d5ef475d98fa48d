"""Residual networks of the literature: for 32x32 images as robustness papers use them, with a stem for larger ones.

Sizes for three channels and ten classes: ResNet-18 11,173,962 parameters, pre-activation ResNet-18 11,172,170, WRN-28-10
36,479,194, WRN-34-10 46,160,474.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from rbl_defenses.normalise import Normalise
from robustbench_lite import DatasetInfo

# The smaller side above which the stem quarters the image, as for ImageNet.
LARGE = 64


class Block(nn.Module):
    """Two 3x3 convolutions, each followed by batch norm, and a shortcut (He et al., 2016, arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _convolution(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        active: Tensor = self.relu(inner + self.shortcut(x))
        return active


class PreActBlock(nn.Module):
    """The same with batch norm and ReLU before each convolution (arXiv:1603.05027): a projection starts behind the first."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _convolution(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _convolution(outputs, outputs, 3)
        self.relu = nn.ReLU()
        self.projection = _convolution(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active: Tensor = self.relu(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(active)
        inner: Tensor = self.conv2(self.relu(self.bn2(self.conv1(active))))
        return inner + shortcut


class ResNet(nn.Module):
    """Stages of residual blocks, each but the first halving the image; then the mean over positions and a linear layer.

    widths: channels of the stem and of each stage. depth: blocks per stage. preact: blocks with their activation first, and
    one more batch norm and ReLU behind the last of them.
    """

    def __init__(self, info: DatasetInfo, widths: tuple[int, ...], depth: int, *, preact: bool) -> None:
        super().__init__()
        channels, height, columns = info.shape
        large = min(height, columns) > LARGE
        block: type[Block | PreActBlock] = PreActBlock if preact else Block
        self.normalise = Normalise(info)
        first = _convolution(channels, widths[0], 7, 2) if large else _convolution(channels, widths[0], 3)
        self.stem = nn.Sequential(first)
        if not preact:
            self.stem.extend([nn.BatchNorm2d(widths[0]), nn.ReLU()])
        if large:
            self.stem.append(nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential()
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            first_block = block(inputs, outputs, 1 if number == 0 else 2)
            self.stages.append(nn.Sequential(first_block, *(block(outputs, outputs, 1) for _ in range(depth - 1))))
        self.last = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU()) if preact else nn.Identity()
        self.linear = nn.Linear(widths[-1], info.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        maps = self.last(self.stages(self.stem(self.normalise(x))))
        logits: Tensor = self.linear(maps.mean((2, 3)))
        return logits


def resnet18(info: DatasetInfo) -> ResNet:
    """Four stages of two blocks."""
    return ResNet(info, (64, 64, 128, 256, 512), 2, preact=False)


def preact_resnet18(info: DatasetInfo) -> ResNet:
    """The same with pre-activation blocks."""
    return ResNet(info, (64, 64, 128, 256, 512), 2, preact=True)


def wide_resnet(info: DatasetInfo, depth: int, factor: int) -> ResNet:
    """WRN-depth-factor (Zagoruyko & Komodakis, 2016, arXiv:1605.07146): three stages of (depth - 4) / 6 blocks."""
    return ResNet(info, (16, 16 * factor, 32 * factor, 64 * factor), (depth - 4) // 6, preact=True)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)

"""Networks that trained defenses share: [0, 1] NCHW in, logits out, normalisation inside; from 1x8x8 to 3x224x224."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from rbl_defenses.normalise import Normalise
from rbl_defenses.resnets import preact_resnet18, resnet18, wide_resnet
from robustbench_lite import DatasetInfo

Network = Literal["small-cnn", "resnet-18", "preact-resnet-18", "wide-resnet-28-10", "wide-resnet-34-10"]
NETWORKS: tuple[Network, ...] = get_args(Network)
WIDTH = 16  # of the small network


def build(network: Network, info: DatasetInfo, *, width: int = WIDTH) -> nn.Module:
    """An untrained network. width: channels of the first convolution of ``small-cnn``; the others have their papers'."""
    if network == "small-cnn":
        return small_cnn(info, width)
    if network == "resnet-18":
        return resnet18(info)
    if network == "preact-resnet-18":
        return preact_resnet18(info)
    return wide_resnet(info, 28 if network == "wide-resnet-28-10" else 34, 10)


def with_features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, K), and what the last linear layer, the one in front of them, is given (n, d): from one pass."""
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        logits: Tensor = model(x)
    finally:
        handle.remove()
    return logits, seen[-1]


def feature_size(model: nn.Module) -> int:
    """How many numbers per image ``with_features`` gives."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1].in_features


def small_cnn(info: DatasetInfo, width: int = WIDTH, head: int = 64) -> nn.Module:
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

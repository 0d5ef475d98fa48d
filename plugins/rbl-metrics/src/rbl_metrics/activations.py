"""What the hidden units of a network answer: recorded after each rectifier, however the network's code calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustbench_lite import MeasuredModel, UsageError

Pooling = Literal["average", "flatten"]

BATCH = 128

_RECTIFIERS = {
    torch.relu,
    torch.relu_,
    Tensor.relu,
    Tensor.relu_,
    F.relu,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.gelu,
    F.silu,
    F.mish,
    F.softplus,
    F.hardswish,
}


class _Recorder(TorchFunctionMode):
    """Hands the result of every rectifier to ``take``, with the number of the call in this pass."""

    def __init__(self, take: Callable[[int, Tensor], None]) -> None:
        super().__init__()
        self._take, self._calls = take, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in _RECTIFIERS:
            self._take(self._calls, found)
            self._calls += 1
        return found


def activations(model: MeasuredModel, x: Tensor, pooling: Pooling = "average") -> list[np.ndarray]:
    """Activations (n, units) float32 of each rectified layer, in the order of computation, for images x (n, C, H, W).

    pooling: of a convolutional layer, ``average`` makes each feature map one unit by its mean over positions, ``flatten`` each
    position. Raises UsageError where the network has no rectifier.
    """
    layers: list[list[np.ndarray]] = []

    def take(number: int, values: Tensor) -> None:
        if number == len(layers):
            layers.append([])
        pooled = values.flatten(2).mean(2) if pooling == "average" and values.dim() > 2 else values.flatten(1)
        layers[number].append(pooled.detach().float().cpu().numpy())

    for rows in batches(len(x), x.device):
        with torch.no_grad(), model.keyed(rows), _Recorder(take):
            model.module(x[rows])
    if not layers:
        raise UsageError(
            f"{model.name} has no rectified layer to look into",
            hint="relu, leaky_relu, elu, gelu, silu and their kind are seen",
        )
    return [np.concatenate(parts) for parts in layers]


def batches(n: int, device: torch.device, size: int = BATCH) -> Iterator[Tensor]:
    """The numbers 0 to n - 1 in consecutive batches."""
    return (torch.arange(first, min(first + size, n), device=device) for first in range(0, n, size))

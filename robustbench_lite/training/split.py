"""The training split, of which a part is held out to watch accuracy without touching the test split."""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_lite.data import DatasetBundle, MapDataset, fetch
from robustbench_lite.errors import MissingData

# So many examples are held out, but no more than a fifth of the split.
HELD_OUT = 128
SMALLEST_SPLIT = 10


def training_split(bundle: DatasetBundle) -> MapDataset:
    """The training split of a data set. Raises MissingData where there is none, or one of fewer than ten examples."""
    if bundle.train is None:
        raise MissingData(
            f"data set {bundle.info.name} has no training split", hint="give it one (x_train and y_train), or other weights"
        )
    if len(bundle.train) < SMALLEST_SPLIT:
        raise MissingData(
            f"the training split of {bundle.info.name} has {len(bundle.train)} examples",
            hint=f"give it at least {SMALLEST_SPLIT}, or other weights",
        )
    return bundle.train


class Split:
    """A training split in an order drawn from torch's generator: the first examples are held out, the rest are trained on."""

    def __init__(self, bundle: DatasetBundle, device: str) -> None:
        self.data, self.device = training_split(bundle), device
        order = torch.randperm(len(self.data))
        count = min(HELD_OUT, len(order) // 5)
        self.rest = order[count:]
        self.held_out = self.fetch(order[:count])

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of some examples, on the device."""
        x, y = fetch(self.data, indices.tolist())
        return x.to(self.device), y.to(self.device)

    def examples(self, n: int) -> tuple[Tensor, Tensor]:
        """The same first n of the examples that are trained on, whenever asked."""
        return self.fetch(self.rest[:n])

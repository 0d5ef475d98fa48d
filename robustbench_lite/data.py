"""What a data set gives to the core: images in [0, 1], labels, and the fixed subset on which defenses are judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class MapDataset(Protocol):
    """A map-style data set of (float32 tensor of shape (C, H, W) in [0, 1], int label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a defense may know about a data set before it sees an image.

    name: short name, under which protocols and weights are found (``digits``). classes: their names in label order.
    shape: (C, H, W). mean, std: one value per channel, for models that normalise; of the training images.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    task: str = "image-classification"

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)


@dataclass(frozen=True, kw_only=True)
class DatasetBundle:
    """A data set, ready to use.

    test: the split that defenses are judged on. evaluation: indices into it, in the order in which a protocol that
    wants n examples takes the first n. train: None where the data set has none. fingerprint: a text that changes when
    the data change (a checksum of the source files, or of the arrays); it is part of every result's key.
    """

    info: DatasetInfo
    test: MapDataset
    evaluation: Sequence[int]
    fingerprint: str
    train: MapDataset | None = None


class Dataset(Protocol):
    """What a data set's factory makes: called with the data folder (``RBL_DATA``), it returns the bundle.

    Raises MissingData, with a hint that says how to get them, where the files are absent.
    """

    def __call__(self, root: Path) -> DatasetBundle: ...


def fetch(split: MapDataset, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Images (n, C, H, W) and labels (n,) of some examples; through the split's own ``batch(indices)`` where it has one."""
    whole: Any = split
    if hasattr(whole, "batch"):
        x, y = whole.batch(indices)
        return x, y
    import torch

    pairs = [split[i] for i in indices]
    return torch.stack([image for image, _ in pairs]), torch.tensor([int(label) for _, label in pairs])

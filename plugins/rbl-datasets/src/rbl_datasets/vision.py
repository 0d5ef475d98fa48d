"""torchvision's data sets, in torchvision's folder layout and with its downloads and checksums."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rbl_datasets.memory import InMemory
from robustbench_lite import DatasetBundle, DatasetInfo, MissingData, import_torchvision

# Channel statistics of the training images, computed from them (MNIST, CIFAR) or as the field uses them (ImageNet).
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Vision(ABC):
    """A data set of torchvision that fits in memory.

    download: let torchvision download it, with its checksums, where it is missing.
    """

    download: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name."""

    @property
    @abstractmethod
    def looks_like(self) -> str:
        """What must lie in the data folder, for messages."""

    @abstractmethod
    def split(self, root: Path, train: bool) -> Any:
        """Torchvision's data set object. Raises RuntimeError where files are missing or damaged."""

    @abstractmethod
    def arrays(self, split: Any) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, C, H, W) uint8 and labels (n,) of one of torchvision's objects."""

    def classes(self, split: Any) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(split.classes)

    def __call__(self, root: Path) -> DatasetBundle:
        """The bundle. Raises MissingData, with what to do, where the files are absent."""
        train, test = (self._load(root, train) for train in (True, False))
        images, labels = self.arrays(test)
        training = InMemory(*self.arrays(train))
        mean, std = training.statistics()
        return DatasetBundle(
            info=DatasetInfo(name=self.name, classes=self.classes(test), shape=images.shape[1:], mean=mean, std=std),
            test=InMemory(images, labels),
            evaluation=range(len(labels)),
            fingerprint=content_hash(images, labels),
            train=training,
        )

    def _load(self, root: Path, train: bool) -> Any:
        try:
            return self.split(root, train)
        except (RuntimeError, OSError) as error:
            if self.download:
                hint = f"check the network, or put the files there by other means: {root}/{self.looks_like}"
            else:
                hint = f"set RBL_DATA to a folder that holds {self.looks_like}, or use --dataset '{self.name}[download=true]'"
            raise MissingData(f"{self.name} was not found in {root}: {str(error).splitlines()[0]}", hint=hint) from error


@dataclass(frozen=True, kw_only=True)
class MNIST(Vision):
    """Handwritten digits (LeCun et al., 1998).

    download: let torchvision download it, with its checksums, where it is missing.
    """

    name = "mnist"
    looks_like = "MNIST/raw/*-ubyte"

    def split(self, root: Path, train: bool) -> Any:
        return import_torchvision().datasets.MNIST(root, train=train, download=self.download)

    def arrays(self, split: Any) -> tuple[np.ndarray, np.ndarray]:
        return split.data.numpy()[:, None], split.targets.numpy()


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(MNIST):
    """Pictures of clothing (Xiao et al., 2017).

    download: let torchvision download it, with its checksums, where it is missing.
    """

    name = "fashion-mnist"
    looks_like = "FashionMNIST/raw/*-ubyte"

    def split(self, root: Path, train: bool) -> Any:
        return import_torchvision().datasets.FashionMNIST(root, train=train, download=self.download)


@dataclass(frozen=True, kw_only=True)
class CIFAR10(Vision):
    """Photographs in 10 classes (Krizhevsky, 2009).

    download: let torchvision download it, with its checksums, where it is missing.
    """

    name = "cifar10"
    looks_like = "cifar-10-batches-py/*_batch*"

    def split(self, root: Path, train: bool) -> Any:
        return import_torchvision().datasets.CIFAR10(root, train=train, download=self.download)

    def arrays(self, split: Any) -> tuple[np.ndarray, np.ndarray]:
        return split.data.transpose(0, 3, 1, 2), np.asarray(split.targets)


@dataclass(frozen=True, kw_only=True)
class CIFAR100(CIFAR10):
    """Photographs in 100 classes (Krizhevsky, 2009).

    download: let torchvision download it, with its checksums, where it is missing.
    """

    name = "cifar100"
    looks_like = "cifar-100-python/{train,test}"

    def split(self, root: Path, train: bool) -> Any:
        return import_torchvision().datasets.CIFAR100(root, train=train, download=self.download)


@dataclass(frozen=True, kw_only=True)
class SVHN(Vision):
    """House numbers (Netzer et al., 2011).

    download: let torchvision download it, with its checksums, where it is missing.
    """

    name = "svhn"
    looks_like = "{train,test}_32x32.mat"

    def split(self, root: Path, train: bool) -> Any:
        return import_torchvision().datasets.SVHN(root, split="train" if train else "test", download=self.download)

    def arrays(self, split: Any) -> tuple[np.ndarray, np.ndarray]:
        return split.data, split.labels

    def classes(self, split: Any) -> tuple[str, ...]:
        return tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class ImageNet:
    """The validation images of ImageNet-1k (Russakovsky et al., 2015): shorter side 256, the middle 224x224.

    n: evaluation images, drawn once by the rule of ``spread``. It is not RobustBench's list of 5,000 names, so its figures
    compare with published ones up to sampling error only. The training images are not used.
    """

    n: int = 5000

    def __call__(self, root: Path) -> DatasetBundle:
        """The bundle. Raises MissingData where ``root`` has no prepared validation folder; ImageNet cannot be downloaded."""
        vision = import_torchvision()
        transforms = vision.transforms
        prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
        try:
            split = vision.datasets.ImageNet(root, split="val", transform=prepare)
        except (RuntimeError, OSError) as error:
            raise MissingData(
                f"imagenet was not found in {root}: {str(error).splitlines()[0]}",
                hint="put ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz into the folder that RBL_DATA names: "
                "they need an account at image-net.org",
            ) from error
        names = [Path(path).name for path, _ in split.samples]
        sizes = [Path(path).stat().st_size for path, _ in split.samples]  # 6 GB are too many to read for a key
        listed = "\n".join(f"{name} {size} {label}" for name, size, (_, label) in zip(names, sizes, split.samples, strict=True))
        classes = tuple(", ".join(words) if isinstance(words, tuple) else str(words) for words in split.classes)
        return DatasetBundle(
            info=DatasetInfo(name="imagenet", classes=classes, shape=(3, 224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD),
            test=_Plain(split),
            evaluation=spread(names, self.n),
            fingerprint=hashlib.sha256(listed.encode()).hexdigest(),
        )


class _Plain:
    """Labels as int: torchvision's samples, unchanged otherwise."""

    def __init__(self, split: Any) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._split[index]
        return torch.as_tensor(image), int(label)


def spread(names: Sequence[str], n: int) -> list[int]:
    """N indices in the order of the sha256 of the file names: a fixed draw, whatever the order of the folder."""
    return sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())[:n]


def content_hash(images: np.ndarray, labels: np.ndarray) -> str:
    """sha256 over what defenses are judged on: the bytes of the test images and labels."""
    return _hash(images.tobytes(), labels.astype(np.int64).tobytes())


@lru_cache(maxsize=4)
def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()

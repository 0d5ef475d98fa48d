"""torchvision's data sets, in torchvision's folder layout and with its downloads and checksums."""

from __future__ import annotations

import hashlib
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rbl_datasets.memory import InMemory
from robustbench_lite import DatasetBundle, DatasetInfo, MissingData, import_torchvision

# Channel statistics as the field uses them; those of the other data sets are computed from their training images.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Set to anything but 0, it keeps data sets from being downloaded.
OFFLINE = "RBL_OFFLINE"
# Seconds without an answer after which a download is given up.
PATIENCE = 30.0


@dataclass(frozen=True, kw_only=True)
class Vision(ABC):
    """A data set of torchvision that fits in memory: read from the data folder, and downloaded into it where it is missing.

    torchvision checks what it downloads by md5, and CIFAR and SVHN each time they are read. RBL_OFFLINE=1 forbids downloads.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name."""

    @property
    @abstractmethod
    def files(self) -> str:
        """What lies in the data folder, for messages."""

    @abstractmethod
    def split(self, root: Path, train: bool, download: bool) -> Any:
        """Torchvision's data set object. Raises RuntimeError where files are missing, whatever else where they are damaged."""

    @abstractmethod
    def arrays(self, split: Any) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, C, H, W) uint8 and labels (n,) of one of torchvision's objects."""

    def classes(self, split: Any) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(split.classes)

    def __call__(self, root: Path) -> DatasetBundle:
        """The bundle. Raises MissingData, with what to do, where the files are absent or damaged."""
        (training, _), (test, split) = self._load(root, True), self._load(root, False)
        classes = self.classes(split)
        mean, std = training.statistics()
        images, labels = self.arrays(split)
        return DatasetBundle(
            info=DatasetInfo(name=self.name, classes=classes, shape=images.shape[1:], mean=mean, std=std),
            test=test,
            evaluation=range(len(test)),
            fingerprint=content_hash(images, labels),
            train=training,
        )

    def _load(self, root: Path, train: bool) -> tuple[InMemory, Any]:
        """One split, from the data folder or else from the network."""
        try:
            return self._open(root, train, download=False)
        except Exception as error:  # torchvision raises many kinds for a damaged file: AssertionError, EOFError, ValueError...
            reason = error
        fix = f"put {self.files} into a folder and set RBL_DATA to it"
        if os.environ.get(OFFLINE, "0") not in ("", "0"):
            raise MissingData(
                f"{self.name} cannot be read from {root}: {one_line(reason)}", hint=f"{fix}, or unset {OFFLINE} to download it"
            ) from reason
        try:
            with patience():
                return self._open(root, train, download=True)
        except Exception as error:
            raise MissingData(
                f"{self.name} can be neither read from {root} nor downloaded: {one_line(error)}{_which(error, root)}",
                hint=f"{fix}; if files of an interrupted download lie in {root}, remove them and run the same command again",
            ) from error

    def _open(self, root: Path, train: bool, download: bool) -> tuple[InMemory, Any]:
        split = self.split(root, train, download)
        images, labels = self.arrays(split)
        if len(images) != len(labels) or not len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels: the files are damaged")
        return InMemory(images, labels), split


@dataclass(frozen=True, kw_only=True)
class MNIST(Vision):
    """Handwritten digits (LeCun et al., 1998): downloaded into the data folder where it is missing."""

    name = "mnist"
    files = "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"

    def split(self, root: Path, train: bool, download: bool) -> Any:
        return import_torchvision().datasets.MNIST(root, train=train, download=download)

    def arrays(self, split: Any) -> tuple[np.ndarray, np.ndarray]:
        return split.data.numpy()[:, None], split.targets.numpy()

    def classes(self, split: Any) -> tuple[str, ...]:
        return tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(MNIST):
    """Pictures of clothing (Xiao et al., 2017): downloaded into the data folder where it is missing."""

    name = "fashion-mnist"
    files = "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"

    def split(self, root: Path, train: bool, download: bool) -> Any:
        return import_torchvision().datasets.FashionMNIST(root, train=train, download=download)

    def classes(self, split: Any) -> tuple[str, ...]:
        return tuple(split.classes)


@dataclass(frozen=True, kw_only=True)
class CIFAR10(Vision):
    """Photographs in 10 classes (Krizhevsky, 2009): downloaded into the data folder where it is missing."""

    name = "cifar10"
    files = "cifar-10-batches-py/{data_batch_1,...,data_batch_5,test_batch,batches.meta}"

    def split(self, root: Path, train: bool, download: bool) -> Any:
        return import_torchvision().datasets.CIFAR10(root, train=train, download=download)

    def arrays(self, split: Any) -> tuple[np.ndarray, np.ndarray]:
        return split.data.transpose(0, 3, 1, 2), np.asarray(split.targets)


@dataclass(frozen=True, kw_only=True)
class CIFAR100(CIFAR10):
    """Photographs in 100 classes (Krizhevsky, 2009): downloaded into the data folder where it is missing."""

    name = "cifar100"
    files = "cifar-100-python/{train,test,meta}"

    def split(self, root: Path, train: bool, download: bool) -> Any:
        return import_torchvision().datasets.CIFAR100(root, train=train, download=download)


@dataclass(frozen=True, kw_only=True)
class SVHN(Vision):
    """House numbers (Netzer et al., 2011), without the extra images: downloaded into the data folder where it is missing."""

    name = "svhn"
    files = "{train,test}_32x32.mat"

    def split(self, root: Path, train: bool, download: bool) -> Any:
        return import_torchvision().datasets.SVHN(root, split="train" if train else "test", download=download)

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

    n: Annotated[int, Field(ge=1)] = 5000

    def __call__(self, root: Path) -> DatasetBundle:
        """The bundle. Raises MissingData where ``root`` has no prepared validation folder; ImageNet cannot be downloaded."""
        vision = import_torchvision()
        transforms = vision.transforms
        prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
        try:
            split = vision.datasets.ImageNet(root, split="val", transform=prepare)
        except Exception as error:  # as many kinds as archives can be damaged
            raise MissingData(
                f"imagenet cannot be read from {root}: {one_line(error)}",
                hint="put ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz into a folder and set RBL_DATA to it: "
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
    digest = hashlib.sha256(images.tobytes())
    digest.update(labels.astype(np.int64).tobytes())
    return digest.hexdigest()


def one_line(error: Exception) -> str:
    """The kind of an exception where its message is empty, its message in one line otherwise."""
    # Here it is no argument of the user's.
    text = " ".join(str(error).split()).removesuffix(" You can use download=True to download it")
    return text or type(error).__name__


def _which(error: Exception, root: Path) -> str:
    """In brackets, the file of a download that torchvision found to be damaged and did not name; nothing otherwise."""
    files = [path for path in root.rglob("*") if path.is_file()] if "File not found or corrupted" in str(error) else []
    last = max(files, key=lambda path: path.stat().st_mtime_ns, default=None)
    return "" if last is None or last.name in str(error) else f" ({last})"


@contextmanager
def patience() -> Iterator[None]:
    """Connections made meanwhile are given up after ``PATIENCE`` seconds of silence: torchvision itself waits for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)

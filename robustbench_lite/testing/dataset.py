"""The conformance suite of data sets: what the core relies on when it judges examples and names them in a key."""

from __future__ import annotations

import hashlib
import socket
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar
from unittest import mock

import torch
from torch import Tensor

from robustbench_lite.data import DatasetBundle, MapDataset, fetch
from robustbench_lite.errors import MissingData
from robustbench_lite.registry import Registry
from robustbench_lite.request import default_data
from robustbench_lite.resolve import ResolvedDataset, resolve_dataset
from robustbench_lite.testing.checks import Failed, Outcome, Skipped, Subject, Suite, describe, plural
from robustbench_lite.testing.common import COMMON

SAMPLE = 512  # images that are looked at
LARGE_SAMPLE = 2000  # of each split, where it is looked for images that are in both
FEW = 0.01  # share of test images that may stand in the training split: real data have a few duplicates
PER_CLASS = 20  # sampled images per class from which every class is expected to occur


class DatasetSubject(Subject):
    """A data set under test. root: the folder of data sets."""

    kind: ClassVar[str] = "dataset"

    def __init__(self, registry: Registry, selector: str, root: Path | None = None) -> None:
        super().__init__(registry, selector)
        self.root = root or default_data()
        self._absent = False

    def load(self) -> ResolvedDataset:
        """Load it. Raises as its factory does."""
        return resolve_dataset(self.registry, self.selector, self.root)

    @cached_property
    def bundle(self) -> DatasetBundle:
        """What it brings; Skipped where its data are not here, or where the check ``loads`` says what is wrong."""
        _ = self.found
        try:
            if not self._absent:
                return self.load().bundle
            raise MissingData("looked for before")
        except MissingData:
            self._absent = True
            raise Skipped("its data are not here: see the check `loads`") from None
        except KeyboardInterrupt:
            raise
        except BaseException:
            raise Skipped("it cannot be loaded: see the check `loads`") from None

    @property
    def evaluation(self) -> list[int]:
        """The evaluation subset; Skipped where it does not fit the test split."""
        found, n = [int(i) for i in self.bundle.evaluation], len(self.bundle.test)
        if not found or not all(0 <= i < n for i in found):
            raise Skipped("its evaluation subset does not fit: see the check `evaluation-subset`")
        return found

    @cached_property
    def sample(self) -> tuple[Tensor, Tensor]:
        """Images and labels of the evaluation subset, and of the training split where there is one."""
        x, y = fetch(self.bundle.test, _spread(self.evaluation, SAMPLE))
        if self.bundle.train is not None and len(self.bundle.train):
            more, labels = fetch(self.bundle.train, _spread(range(len(self.bundle.train)), SAMPLE))
            if more.shape[1:] != x.shape[1:] or more.dtype != x.dtype:
                raise Failed(f"training images are {more.dtype} {tuple(more.shape[1:])}, test images {x.dtype} {_size(x)}")
            x, y = torch.cat([x, more]), torch.cat([y, labels])
        return x, y


def _spread(indices: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the indices, evenly over all of them."""
    step = -(-len(indices) // most)
    return [int(i) for i in indices[:: max(step, 1)]]


def _size(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[1:])


DATASET_SUITE: Suite[DatasetSubject] = Suite("dataset", *COMMON)
_check = DATASET_SUITE.check


def check_dataset(registry: Registry, selector: str, root: Path | None = None) -> list[Outcome]:
    """Run the conformance suite on a data set."""
    return list(DATASET_SUITE.run(DatasetSubject(registry, selector, root)))


@_check
def missing_data_says_how(subject: DatasetSubject) -> None:
    """In an empty data folder, and without a network, it raises MissingData with a hint, or needs no data."""
    factory = subject.found.instance
    fix = "raise MissingData(..., hint=...) with the command or page that gives the data"
    with tempfile.TemporaryDirectory() as empty, mock.patch.object(socket.socket, "connect", _no_network):
        try:
            factory(Path(empty))
        except MissingData as error:
            if not error.hint:
                raise Failed("MissingData has no hint", fix=fix) from error
        except Exception as error:
            raise Failed(f"it raises {describe(error)}", fix=fix) from error


def _no_network(*_: object) -> None:
    raise OSError("there is no network in this check")


@_check
def loads(subject: DatasetSubject) -> None:
    """Its factory returns a DatasetBundle."""
    _ = subject.found
    try:
        subject.load()
    except MissingData as error:
        raise Skipped("its data are not here", fix=error.hint) from None


@_check
def info_is_sound(subject: DatasetSubject) -> None:
    """It says its classes, its shape (C, H, W) and, where it has them, mean and standard deviation per channel."""
    info = subject.bundle.info
    if len(info.classes) < 2 or len(set(info.classes)) < len(info.classes):
        raise Failed(f"{plural(len(info.classes), 'class')}, not all different", fix="give two or more different names")
    if len(info.shape) != 3 or min(info.shape) < 1:
        raise Failed(f"shape {info.shape} is not (C, H, W)", fix="give shape=(channels, height, width)")
    for name, values in (("mean", info.mean), ("std", info.std)):
        if values and (len(values) != info.shape[0] or not all(v == v and abs(v) <= 1 for v in values)):
            raise Failed(f"{name} {values} is not one number in [0, 1] per channel", fix=f"compute {name} over [0, 1] images")
    if any(v <= 0 for v in info.std):
        raise Failed(f"std {info.std} is not positive", fix="compute std over the [0, 1] training images")


@_check
def images(subject: DatasetSubject) -> None:
    """Its images are float32 of the shape that it says, finite, in [0, 1], and not all alike."""
    x, _ = subject.sample
    shape = tuple(subject.bundle.info.shape)
    if x.dtype != torch.float32 or _size(x) != shape:
        raise Failed(f"images are {x.dtype} of shape {_size(x)}", fix=f"give float32 of shape {shape}, as its info says")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise Failed(f"values go from {low:.4g} to {high:.4g}", fix="scale to [0, 1]; normalisation belongs into the defense")
    if high <= 1.01 / 255:
        raise Failed(f"the brightest value is {high:.4g}", fix="images were divided by 255 twice: scale to [0, 1] once")
    if low == high:
        raise Failed("all values are alike", fix="check how the images are read")


@_check
def labels(subject: DatasetSubject) -> None:
    """Its labels are whole numbers from 0 to classes - 1, and every class occurs in a sample large enough."""
    _, y = subject.sample
    classes = subject.bundle.info.num_classes
    _, first = subject.bundle.test[subject.evaluation[0]]
    if not isinstance(first, int) or isinstance(first, bool):
        raise Failed(f"a label is of type {type(first).__name__}", fix="return int(label)")
    if y.is_floating_point() or int(y.min()) < 0 or int(y.max()) >= classes:
        raise Failed(f"labels go from {y.min()} to {y.max()} with {classes} classes", fix="number the classes from 0")
    seen = len(set(y.tolist()))
    if len(y) >= PER_CLASS * classes and seen < classes:
        raise Failed(f"{seen} of {classes} classes occur among {len(y)} images", fix="draw the subset from all classes")


@_check
def evaluation_subset(subject: DatasetSubject) -> None:
    """Its evaluation subset holds indices of the test split, each once."""
    indices, n = [int(i) for i in subject.bundle.evaluation], len(subject.bundle.test)
    if not indices:
        raise Failed("it is empty", fix="give at least one index: range(len(test)) for all")
    if outside := [i for i in indices if not 0 <= i < n]:
        raise Failed(f"index {outside[0]} is outside the test split of {n}", fix="give indices into test")
    if len(set(indices)) < len(indices):
        raise Failed(f"{len(indices) - len(set(indices))} indices stand twice", fix="give each index once")


@_check
def same_example_again(subject: DatasetSubject) -> None:
    """An example is the same whenever it is asked for, alone or with others."""
    chosen = _spread(subject.evaluation, 32)
    test = subject.bundle.test
    first, labels = fetch(test, chosen)
    again, same_labels = fetch(test, chosen[::-1])
    if not torch.equal(first, again.flip(0)) or not torch.equal(labels, same_labels.flip(0)):
        raise Failed("examples change between calls", fix="take random augmentation and noise out of the test split")
    alone = [test[i] for i in chosen[:8]]
    same = all(torch.equal(image, first[k]) and int(label) == int(labels[k]) for k, (image, label) in enumerate(alone))
    if not same:
        raise Failed("batch(indices) and test[i] give different examples", fix="let one of them call the other")


@_check
def same_data_again(subject: DatasetSubject) -> None:
    """Loaded again it has the same fingerprint, classes, evaluation subset and examples."""
    bundle, again = subject.bundle, subject.load().bundle
    if not isinstance(bundle.fingerprint, str) or not bundle.fingerprint:
        raise Failed("it has no fingerprint", fix="give a checksum of the files or arrays: it is part of every key")
    chosen = _spread(subject.evaluation, 8)
    for what, same in (
        ("fingerprint", bundle.fingerprint == again.fingerprint),
        ("info", bundle.info == again.info),
        ("evaluation subset", [int(i) for i in bundle.evaluation] == [int(i) for i in again.evaluation]),
        ("examples", all(torch.equal(bundle.test[i][0], again.test[i][0]) for i in chosen)),
    ):
        if not same:
            raise Failed(f"loaded twice, its {what} differs", fix="seed every draw, and sort what is read from folders")


@_check
def splits_are_disjoint(subject: DatasetSubject) -> None:
    """Its splits share no images (at most 1 % of a sample: real data have a few duplicates)."""
    bundle = subject.bundle
    if bundle.train is None:
        raise Skipped("it has no training split")
    test = _digests(bundle.test, _spread(subject.evaluation, LARGE_SAMPLE))
    train = set(_digests(bundle.train, list(range(min(len(bundle.train), LARGE_SAMPLE)))))
    shared = sum(digest in train for digest in test)
    if shared > FEW * len(test):
        raise Failed(
            f"{shared} of {len(test)} test images stand in the training split", fix="take the test images out of training"
        )


def _digests(split: MapDataset, indices: Sequence[int]) -> list[bytes]:
    found: list[bytes] = []
    for start in range(0, len(indices), 256):
        x, _ = fetch(split, indices[start : start + 256])
        found += [hashlib.sha256(image.contiguous().numpy().tobytes()).digest() for image in x]
    return found

"""The user's own data as arrays in an .npz file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rbl_datasets.memory import InMemory
from robustbench_lite import DatasetBundle, DatasetInfo, MissingData, UsageError

KEYS = "x_test, y_test and optionally x_train, y_train, classes"
Layout = Literal["auto", "nchw", "nhwc"]


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Images and labels from an .npz file with x_test, y_test and, for training, x_train, y_train.

    path: the file; or a name such as ``cifar10`` for ``$RBL_DATA/cifar10/cifar10.npz`` or ``$RBL_DATA/cifar10.npz``. Images are
    (n, H, W), (n, H, W, C) or (n, C, H, W), uint8 in [0, 255] or float in [0, 1]; labels are whole numbers from 0 without gaps,
    unless an array ``classes`` in the file names every class. layout: where it cannot be told which axis is the channel.
    """

    path: str
    layout: Layout = "auto"

    def __call__(self, root: Path) -> DatasetBundle:
        """The bundle, named after the file. Raises MissingData for no file, UsageError for one that cannot be used."""
        file = find(self.path, root)
        content = _read(file)
        x_test, y_test = _split(file, content, "test", self.layout)
        train = None
        if "x_train" in content or "y_train" in content:
            x_train, y_train = _split(file, content, "train", self.layout)
            if x_train.shape[1:] != x_test.shape[1:]:
                raise UsageError(f"{file}: x_train has images of {x_train.shape[1:]}, x_test of {x_test.shape[1:]}")
            train = InMemory(x_train, y_train)
        test = InMemory(x_test, y_test)
        mean, std = (train or test).statistics()
        return DatasetBundle(
            info=DatasetInfo(
                name=file.stem.lower(),
                classes=_classes(file, content, np.unique(y_test if train is None else np.concatenate([y_train, y_test]))),
                shape=x_test.shape[1:],
                mean=mean,
                std=std,
            ),
            test=test,
            evaluation=range(len(y_test)),
            fingerprint=_fingerprint(x_test, y_test),
            train=train,
        )


def find(path: str, root: Path) -> Path:
    """The file that ``path`` names. Raises MissingData with the places that were looked at."""
    given = Path(path).expanduser()
    places = [given, root / given, root / given / f"{given.name}.npz", root / f"{path}.npz"]
    for place in places:
        if place.is_file():
            return place
        if place.is_dir() and (place / f"{place.name}.npz").is_file():
            return place / f"{place.name}.npz"
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise MissingData(
        f"no arrays {path!r}; looked at {looked}",
        hint=f"arrays[path=FILE.npz] names a file with {KEYS}; RBL_DATA is the data folder",
    )


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            wanted = ("x_train", "y_train", "x_test", "y_test", "classes")
            return {key: archive[key] for key in wanted if key in archive.files}
    except Exception as error:  # numpy, zipfile and zlib raise many kinds for a file that is damaged or none of theirs
        raise UsageError(
            f"{file} cannot be read: {error or type(error).__name__}",
            hint=f"save {KEYS} with numpy.savez(FILE, x_test=..., y_test=...), without objects",
        ) from None


def _split(file: Path, content: dict[str, np.ndarray], part: str, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, C, H, W) and labels (n,) of one split, checked."""
    for key in (f"x_{part}", f"y_{part}"):
        if key not in content:
            raise UsageError(f"{file} has no array {key}", hint=f"it needs {KEYS}")
    x, y = content[f"x_{part}"], content[f"y_{part}"]
    name = f"{file}: x_{part}"
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise UsageError(f"{name} is of type {x.dtype}", hint="give uint8 in [0, 255] or float in [0, 1]")
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1 or (len(y) and y.min() < 0):
        raise UsageError(
            f"{file}: y_{part} is {y.dtype} of shape {y.shape}", hint="give one whole number from 0 for each image"
        )
    if len(x) != len(y):
        raise UsageError(f"{file}: {len(x)} images in x_{part} and {len(y)} labels in y_{part}")
    if not len(x):
        raise UsageError(f"{name} is empty")
    if x.dtype != np.uint8 and not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        raise UsageError(
            f"{name} has values outside [0, 1], from {np.nanmin(x):.4g} to {np.nanmax(x):.4g}", hint="scale them, or give uint8"
        )
    return _channels_first(name, x, layout), y.astype(np.int64)


def _channels_first(name: str, x: np.ndarray, layout: Layout) -> np.ndarray:
    if x.ndim == 3:
        return x[:, None]
    if x.ndim != 4:
        raise UsageError(f"{name} has shape {x.shape}", hint="give (n, H, W), (n, H, W, C) or (n, C, H, W)")
    first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
    if layout == "auto" and first == last:
        raise UsageError(
            f"{name} has shape {x.shape}: which axis holds the channels?", hint="arrays[path=...,layout=nhwc] or layout=nchw"
        )
    return x if layout == "nchw" or (layout == "auto" and first) else x.transpose(0, 3, 1, 2)


def _classes(file: Path, content: dict[str, np.ndarray], labels: np.ndarray) -> tuple[str, ...]:
    """Names of the classes. labels: those that occur in either split, sorted."""
    highest = int(labels[-1])
    if "classes" in content:
        names = tuple(map(str, content["classes"].tolist()))
        if len(names) <= highest:
            raise UsageError(f"{file}: {len(names)} names in classes, but labels up to {highest}")
    else:
        names = tuple(map(str, range(highest + 1)))
        if len(labels) <= highest:
            absent = next(k for k, label in enumerate(labels.tolist()) if k != label)
            raise UsageError(
                f"{file}: labels go up to {highest}, but no image has label {absent}",
                hint="count labels from 0 without gaps, or name every class in an array 'classes'",
            )
    if len(names) < 2:
        raise UsageError(f"{file} has one class only", hint="a defense is judged on at least two")
    return names


def _fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """sha256 over what defenses are judged on: type, shape and bytes of the test images, and their labels."""
    digest = hashlib.sha256(f"{images.dtype} {images.shape} ".encode())
    digest.update(images.tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()

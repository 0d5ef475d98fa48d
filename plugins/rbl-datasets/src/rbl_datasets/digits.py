"""The digits of scikit-learn: real, small, and on every machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from rbl_datasets.memory import InMemory
from robustbench_lite import DatasetBundle, DatasetInfo, PluginError

# sha256 of the images and labels as scikit-learn ships them.
CONTENT = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


@dataclass(frozen=True, kw_only=True)
class Digits:
    """1,797 images of 8x8 pixels with 17 grey levels, split into 1,297 for training and 500 for evaluation.

    ``digits_split.json`` lists the evaluation images by their index in scikit-learn's order. It was made once: images of
    each class in the order of the sha256 of their pixels and index, the first 50 of each class, classes in turn; so that
    the first n are balanced. ``make_split`` makes it again.
    """

    def __call__(self, root: Path) -> DatasetBundle:
        """The bundle; root is not used. Raises PluginError where scikit-learn ships other images."""
        images, labels = load()
        content = fingerprint(images, labels)
        if content != CONTENT:
            raise PluginError(
                "scikit-learn's digits are not the images that results so far were computed on",
                hint="install a scikit-learn release that ships them unchanged (1.4 to 1.9 do)",
            )
        listed = json.loads((resources.files("rbl_datasets") / "digits_split.json").read_text())["test"]
        test = np.asarray(listed)
        train = np.setdiff1d(np.arange(len(labels)), test)
        training = InMemory(images[train], labels[train])
        mean, std = training.statistics()
        return DatasetBundle(
            info=DatasetInfo(name="digits", classes=tuple("0123456789"), shape=(1, 8, 8), mean=mean, std=std),
            test=InMemory(images[test], labels[test]),
            evaluation=range(len(test)),
            fingerprint=content,
            train=training,
        )


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 1, 8, 8) float32 in [0, 1], in steps of 1/16, and labels (1797,)."""
    raw = load_digits()
    return (raw.images[:, None] / 16).astype(np.float32), raw.target.astype(np.int64)


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """sha256 over the grey levels and the labels."""
    digest = hashlib.sha256((images * 16).round().astype(np.uint8).tobytes())
    digest.update(labels.astype(np.uint8).tobytes())
    return digest.hexdigest()


def make_split(per_class: int = 50) -> list[int]:
    """The evaluation images, by the rule in ``Digits``."""
    images, labels = load()
    levels = (images * 16).round().astype(np.uint8)
    order = sorted(range(len(labels)), key=lambda i: hashlib.sha256(levels[i].tobytes() + i.to_bytes(4, "little")).digest())
    by_class = [[i for i in order if labels[i] == c][:per_class] for c in range(10)]
    return [members[k] for k in range(per_class) for members in by_class]

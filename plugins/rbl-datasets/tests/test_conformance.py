"""The conformance suite on every data set of this distribution; those that need files are skipped where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from robustbench_lite.registry import load
from robustbench_lite.selectors import parse_selector
from robustbench_lite.testing import DatasetConformance


class TestDigits(DatasetConformance):
    dataset = "rbl/digits"


class TestMNIST(DatasetConformance):
    dataset = "rbl/mnist"


class TestFashionMNIST(DatasetConformance):
    dataset = "rbl/fashion-mnist"


class TestCIFAR10(DatasetConformance):
    dataset = "rbl/cifar10"


class TestCIFAR100(DatasetConformance):
    dataset = "rbl/cifar100"


class TestSVHN(DatasetConformance):
    dataset = "rbl/svhn"


class TestImageNet(DatasetConformance):
    dataset = "rbl/imagenet"


class TestArrays(DatasetConformance):
    """Bytes in the order that Pillow and NumPy have them: height, width, channels."""

    dataset = "rbl/arrays[path=mine]"


class TestArraysOfGreyFloats(DatasetConformance):
    """Floats in [0, 1] without channels and without a training split."""

    dataset = "rbl/arrays[path=grey]"


class TestImageFolder(DatasetConformance):
    dataset = "rbl/image-folder[path=pets,size=8]"


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Data of the user's own, made up."""
    root = tmp_path_factory.mktemp("data")
    TestArrays.data = TestArraysOfGreyFloats.data = TestImageFolder.data = root
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (150, 6, 5, 3), dtype=np.uint8), np.arange(150) % 3
    np.savez(root / "mine.npz", x_test=x[:90], y_test=y[:90], x_train=x[90:], y_train=y[90:])
    np.savez(root / "grey.npz", x_test=rng.random((60, 7, 7), dtype=np.float32), y_test=np.arange(60) % 2)
    for split, n in (("test", 22), ("train", 5)):
        for name in ("cat", "dog"):
            folder = root / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                image = Image.fromarray(rng.integers(0, 256, (9 + i % 3, 12, 3), dtype=np.uint8))
                image.save(folder / f"{i}.png")


def test_every_dataset_is_tested() -> None:
    brought = {entry.id for entry in load().entries("dataset") if entry.distribution == "rbl-datasets"}
    classes = [value for value in globals().values() if isinstance(value, type) and issubclass(value, DatasetConformance)]
    assert brought <= {parse_selector(each.dataset).name for each in classes if hasattr(each, "dataset")}

"""The user's own arrays: what is accepted, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rbl_datasets.arrays import Arrays
from robustbench_lite import MissingData, UsageError
from robustbench_lite.data import fetch


def content(n: int = 12, **changes: Any) -> dict[str, Any]:
    """Arrays of a sound file; a change to None leaves the key out."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "x_train": rng.integers(0, 256, (2 * n, 3, 6, 5), dtype=np.uint8),
        "y_train": np.arange(2 * n) % 4,
        "x_test": rng.integers(0, 256, (n, 3, 6, 5), dtype=np.uint8),
        "y_test": np.arange(n) % 4,
    }
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def save(folder: Path, name: str = "mine.npz", **changes: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **content(**changes))
    return path


def test_bytes_become_numbers_in_the_unit_interval(tmp_path: Path) -> None:
    arrays = content()
    bundle = Arrays(path=str(save(tmp_path, "Mine.npz")))(tmp_path / "elsewhere")
    x, y = fetch(bundle.test, [3, 1])
    assert torch.equal(x, torch.tensor(arrays["x_test"][[3, 1]]).float() / 255)
    assert y.tolist() == [3, 1]
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert (bundle.info.name, bundle.info.classes, bundle.info.shape) == ("mine", ("0", "1", "2", "3"), (3, 6, 5))
    assert bundle.train is not None
    assert (len(bundle.train), len(bundle.test), list(bundle.evaluation)) == (24, 12, list(range(12)))
    pixels = arrays["x_train"].astype(float) / 255
    assert bundle.info.mean == pytest.approx(pixels.mean((0, 2, 3)), abs=5e-5)
    assert bundle.info.std == pytest.approx(pixels.std((0, 2, 3)), abs=5e-5)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_taken_as_they_are(tmp_path: Path, kind: type) -> None:
    images: np.ndarray = np.linspace(0, 1, 12 * 3 * 6 * 5).reshape(12, 3, 6, 5).astype(kind)
    bundle = Arrays(path=str(save(tmp_path, x_test=images)))(tmp_path)
    x, _ = fetch(bundle.test, range(12))
    assert torch.equal(x, torch.tensor(images.astype(np.float32)))
    assert 0 <= x.min() <= x.max() <= 1


def test_channels_may_come_last_or_be_left_out(tmp_path: Path) -> None:
    first = content()
    last = {k: first[k].transpose(0, 2, 3, 1) for k in ("x_train", "x_test")}
    a = Arrays(path=str(save(tmp_path, "a.npz")))(tmp_path)
    b = Arrays(path=str(save(tmp_path, "b.npz", **last)))(tmp_path)
    assert torch.equal(fetch(a.test, range(12))[0], fetch(b.test, range(12))[0])
    assert (a.info.shape, a.fingerprint) == (b.info.shape, b.fingerprint)
    grey: dict[str, Any] = {k: first[k][:, 0] for k in ("x_train", "x_test")}
    c = Arrays(path=str(save(tmp_path, "c.npz", **grey)))(tmp_path)
    assert c.info.shape == (1, 6, 5)
    assert torch.equal(fetch(c.test, range(12))[0], fetch(a.test, range(12))[0][:, :1])


def test_where_the_channels_are_must_be_said_when_it_cannot_be_told(tmp_path: Path) -> None:
    images = np.zeros((12, 3, 5, 3), np.uint8)
    path = str(save(tmp_path, x_test=images, x_train=None, y_train=None))
    with pytest.raises(UsageError, match="which axis holds the channels"):
        Arrays(path=path)(tmp_path)
    assert Arrays(path=path, layout="nchw")(tmp_path).info.shape == (3, 5, 3)
    assert Arrays(path=path, layout="nhwc")(tmp_path).info.shape == (3, 3, 5)


@pytest.mark.parametrize("path", ["cifar10", "cifar10.npz", "cifar10/cifar10.npz"])
def test_a_name_is_looked_up_in_the_data_folder(tmp_path: Path, path: str) -> None:
    save(tmp_path, "cifar10.npz" if path == "cifar10.npz" else "cifar10/cifar10.npz")
    assert Arrays(path=path)(tmp_path).info.name == "cifar10"


def test_training_images_may_be_absent(tmp_path: Path) -> None:
    bundle = Arrays(path=str(save(tmp_path, x_train=None, y_train=None)))(tmp_path)
    assert bundle.train is None
    assert len(bundle.info.mean) == 3


def test_a_file_that_is_not_there_is_missing_data_with_the_places_that_were_searched(tmp_path: Path) -> None:
    for path in ("absent", "../absent", str(tmp_path / "absent.npz")):
        with pytest.raises(MissingData, match=r"(?s)looked at .*absent.*RBL_DATA") as raised:
            Arrays(path=path)(tmp_path)
        assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "no array x_test"),
        ({"y_test": None}, "no array y_test"),
        ({"y_train": None}, "no array y_train"),
        ({"x_train": None}, "no array x_train"),
        ({"x_test": np.zeros((12, 90), np.uint8)}, r"shape \(12, 90\)"),
        ({"x_test": np.zeros((12, 1, 3, 6, 5), np.uint8)}, r"shape \(12, 1, 3, 6, 5\)"),
        ({"x_test": np.zeros((12, 3, 7, 5), np.uint8)}, r"\(3, 6, 5\), x_test of \(3, 7, 5\)"),
        ({"x_test": np.zeros((12, 3, 6, 5), np.int32)}, "int32"),
        ({"x_test": np.zeros((12, 3, 6, 5), bool)}, "bool"),
        ({"x_test": np.full((12, 3, 6, 5), 255.0)}, r"outside \[0, 1\], from 255 to 255"),
        ({"x_test": np.full((12, 3, 6, 5), -0.01)}, r"outside \[0, 1\]"),
        ({"x_test": np.full((12, 3, 6, 5), np.inf)}, r"outside \[0, 1\]"),
        ({"x_test": np.where(np.arange(12)[:, None, None, None] == 3, np.nan, np.zeros((12, 3, 6, 5)))}, r"outside \[0, 1\]"),
        ({"x_test": np.zeros((0, 3, 6, 5), np.uint8), "y_test": np.zeros(0, int)}, "x_test is empty"),
        ({"y_test": np.arange(11) % 4}, "12 images in x_test and 11 labels"),
        ({"y_test": (np.arange(12) % 4)[:, None]}, r"shape \(12, 1\)"),
        ({"y_test": np.arange(12) % 4 * 1.0}, "y_test is float64"),
        ({"y_test": np.arange(12) % 4 - 1}, "whole number from 0"),
        ({"y_test": np.arange(12) % 4 + 1, "y_train": np.arange(24) % 4 + 1}, "no image has label 0"),
        ({"y_test": np.arange(12) % 4 * 2, "y_train": np.arange(24) % 4 * 2}, "no image has label 1"),
        ({"y_test": np.zeros(12, int), "y_train": np.zeros(24, int)}, "one class only"),
        ({"classes": np.array(["a", "b", "c"])}, "3 names in classes, but labels up to 3"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        Arrays(path=str(save(tmp_path, **changes)))(tmp_path)
    assert "mine.npz" in str(raised.value)


def test_named_classes_need_not_all_occur(tmp_path: Path) -> None:
    names = np.array(["ant", "bee", "cat", "dog", "elk"])
    labels: dict[str, Any] = {"y_test": np.arange(12) % 2 * 2, "y_train": np.arange(24) % 2 * 2}
    bundle = Arrays(path=str(save(tmp_path, classes=names, **labels)))(tmp_path)
    assert bundle.info.classes == tuple(names)


def test_labels_that_only_training_has_are_classes_too(tmp_path: Path) -> None:
    bundle = Arrays(path=str(save(tmp_path, y_test=np.arange(12) % 2)))(tmp_path)
    assert bundle.info.num_classes == 4


@pytest.mark.parametrize("fault", ["text", "array", "objects", "cut", "flipped"])
def test_a_file_that_is_damaged_or_something_else_is_refused(tmp_path: Path, fault: str) -> None:
    path = save(tmp_path)
    whole = path.read_bytes()
    if fault == "text":
        path.write_text("x_test, y_test\n")
    elif fault == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif fault == "objects":
        np.savez(path, **content(classes=np.array([{"a": 1}, None], dtype=object)))
    elif fault == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes(255 - b for b in whole[middle : middle + 64]) + whole[middle + 64 :])
    with pytest.raises(UsageError, match=r"mine\.npz cannot be read: .+"):
        Arrays(path=str(path))(tmp_path)


def test_the_fingerprint_changes_with_the_test_images_and_labels_alone(tmp_path: Path) -> None:
    sound = content()
    images, labels = sound["x_test"].copy(), sound["y_test"].copy()
    images[4, 1, 2, 3] ^= 1
    labels[4] = (labels[4] + 1) % 4

    def fingerprint(name: str, **changes: Any) -> str:
        return Arrays(path=str(save(tmp_path, name, **changes)))(tmp_path).fingerprint

    same = fingerprint("a.npz")
    assert same == fingerprint("b.npz") == fingerprint("c.npz", x_train=None, y_train=None)
    folded = {"x_test": sound["x_test"].reshape(12, 3, 5, 6), "x_train": None, "y_train": None}
    others = [fingerprint("d.npz", x_test=images), fingerprint("e.npz", y_test=labels), fingerprint("f.npz", **folded)]
    assert len({same, *others}) == 4


def test_cifar_test_images_from_the_data_folder(real_data: Path) -> None:
    if not (real_data / "cifar10" / "cifar10.npz").is_file():
        pytest.skip("no cifar10/cifar10.npz in the data folder")
    bundle = Arrays(path="cifar10")(real_data)
    assert (bundle.info.name, bundle.info.shape, bundle.info.num_classes) == ("cifar10", (3, 32, 32), 10)
    _, y = fetch(bundle.test, range(10))
    assert y.tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # cat, ship, ship, plane, frog, ...: as CIFAR-10 begins


def test_a_constant_channel_has_a_deviation_that_can_be_divided_by(tmp_path: Path) -> None:
    images = content()["x_train"].copy()
    images[:, 1] = 77
    bundle = Arrays(path=str(save(tmp_path, x_train=images)))(tmp_path)
    assert bundle.info.mean[1] == pytest.approx(77 / 255, abs=5e-5)
    assert bundle.info.std[1] == 1e-4

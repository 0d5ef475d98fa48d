"""The embedded digits: which images, in which split, in which order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from rbl_datasets import digits
from robustbench_lite import DatasetBundle, PluginError
from robustbench_lite.data import fetch


@pytest.fixture(scope="module")
def bundle() -> DatasetBundle:
    return digits.Digits()(Path("no such folder"))


def test_the_images_are_those_of_scikit_learn_in_sixteenths(bundle: DatasetBundle) -> None:
    x, y = fetch(bundle.test, range(len(bundle.test)))
    raw = load_digits()
    indices = digits.make_split()
    assert torch.equal(x[:, 0], torch.tensor(raw.images[indices] / 16, dtype=torch.float32))
    assert y.tolist() == raw.target[indices].tolist()
    assert set((x * 16).flatten().tolist()) == set(range(17))
    assert bundle.info.shape == (1, 8, 8)
    assert bundle.info.classes == tuple("0123456789")


def test_the_split_is_the_one_that_the_rule_makes_and_covers_everything_once(bundle: DatasetBundle) -> None:
    assert bundle.train is not None
    assert (len(bundle.train), len(bundle.test), list(bundle.evaluation)) == (1297, 500, list(range(500)))
    x_train, y_train = fetch(bundle.train, range(1297))
    x_test, y_test = fetch(bundle.test, range(500))
    both = torch.cat([torch.cat([x_train, x_test]).flatten(1) * 16, torch.cat([y_train, y_test])[:, None]], 1)
    raw = load_digits()
    expected = np.concatenate([raw.data, raw.target[:, None]], 1)
    # As multisets: every image is in one of the two splits, once.
    assert sorted(both.long().tolist()) == sorted(expected.astype(int).tolist())


def test_no_image_of_one_split_is_in_the_other(bundle: DatasetBundle) -> None:
    assert bundle.train is not None
    x_train, _ = fetch(bundle.train, range(len(bundle.train)))
    x_test, _ = fetch(bundle.test, range(len(bundle.test)))
    assert not {x.numpy().tobytes() for x in x_train} & {x.numpy().tobytes() for x in x_test}


def test_any_first_n_hundred_are_balanced(bundle: DatasetBundle) -> None:
    _, y = fetch(bundle.test, range(500))
    for n in (10, 100, 500):
        assert torch.bincount(y[:n]).tolist() == [n // 10] * 10


def test_one_example_and_a_batch_are_the_same(bundle: DatasetBundle) -> None:
    x, y = fetch(bundle.test, [7, 3])
    assert torch.equal(x[1], bundle.test[3][0])
    assert (y[1].item(), type(bundle.test[3][1])) == (bundle.test[3][1], int)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


def test_statistics_are_those_of_the_training_images(bundle: DatasetBundle) -> None:
    assert bundle.train is not None
    x, _ = fetch(bundle.train, range(len(bundle.train)))
    assert bundle.info.mean == pytest.approx([x.double().mean().item()], abs=5e-5)
    assert bundle.info.std == pytest.approx([x.double().std(correction=0).item()], abs=5e-5)


def test_the_fingerprint_is_of_the_content(bundle: DatasetBundle) -> None:
    images, labels = digits.load()
    assert digits.fingerprint(images, labels) == digits.CONTENT == bundle.fingerprint
    images[5, 0, 0, 0] += 1 / 16
    assert digits.fingerprint(images, labels) != digits.CONTENT
    images, labels = digits.load()
    labels[5] += 1
    assert digits.fingerprint(images, labels) != digits.CONTENT


def test_other_images_than_expected_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = digits.load()
    images[0, 0, 2, 2] = 0.5
    monkeypatch.setattr(digits, "load", lambda: (images, labels))
    with pytest.raises(PluginError, match="not the images that results so far were computed on"):
        digits.Digits()(Path())

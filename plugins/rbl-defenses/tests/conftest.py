"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import Batch, descended
from torch import nn

from rbl_datasets.digits import Digits
from rbl_defenses.architectures import small_cnn
from rbl_defenses.pgd_at import PGDTraining
from rbl_defenses.standard import Standard
from robustbench_lite import DatasetBundle, DatasetInfo, TrainedDefense
from robustbench_lite.data import fetch
from robustbench_lite.training import Context, Run

torch.set_num_threads(1)  # the suite runs on all cores already


@pytest.fixture(scope="session")
def digits() -> DatasetBundle:
    """1,297 training and 500 test images of 8x8 pixels."""
    return Digits()(Path())


@pytest.fixture(scope="session")
def trained_weights() -> dict[str, Path]:
    """What ``trained_once`` has made in this process, by selector."""
    return {}


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for $RBL_HOME."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def trained_once(
    trained_home: Path, trained_weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Has ``rbl train`` make the weights of a selector, unless another test of this process had it, and says where they are."""
    from robustbench_lite.cli import cli

    monkeypatch.setenv("RBL_HOME", str(trained_home))

    def train(selector: str) -> Path:
        if selector not in trained_weights:
            command = ["train", selector, "--dataset", "digits", "--threads", "1", "--device", "cpu"]
            assert not cli(command, standalone_mode=False)
            made = {*trained_home.glob("weights/digits/*.safetensors")}
            (trained_weights[selector],) = made - {*trained_weights.values()}
        return trained_weights[selector]

    return train


@pytest.fixture(scope="session")
def batch(digits: DatasetBundle) -> Batch:
    """48 training images of digits; half of their pixels are black or white, where the box binds."""
    assert digits.train is not None
    return fetch(digits.train, range(48))


@pytest.fixture(scope="session")
def fitted(batch: Batch) -> nn.Module:
    """A network that knows this batch, and is not robust."""
    return descended(Standard(), batch)


@pytest.fixture(scope="session")
def teacher(batch: Batch) -> nn.Module:
    """One that answers to this batch robustly."""
    return descended(PGDTraining(), batch)


@pytest.fixture
def context_of(digits: DatasetBundle) -> Callable[..., Context]:
    """Contexts after the ramp, with what a defense trains along, and with training images to ask for."""

    def make(defense: TrainedDefense, model: nn.Module, *, info: DatasetInfo = digits.info, **given: Any) -> Context:
        run = Run(given.pop("teacher", None), defense.auxiliary(model, info), lambda n: fetch(digits.train, range(n)))
        return Context(**{"epoch": 1e9, "recipe": defense.recipe(info), "info": info, "run": run} | given)

    return make


@pytest.fixture
def small(digits: DatasetBundle) -> nn.Module:
    """An untrained small network for digits."""
    torch.manual_seed(0)
    return small_cnn(digits.info, width=3)

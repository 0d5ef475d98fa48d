"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)  # the suite runs on both cores already


@pytest.fixture
def small_cnn() -> torch.nn.Module:
    """A small real convolutional network with random weights: (N, 1, 8, 8) in, 10 logits out."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(72, 10),
    )
    torch.random.set_rng_state(generator)
    return module


@pytest.fixture
def images() -> torch.Tensor:
    """300 images (300, 1, 8, 8) in [0, 1]: more than one shard."""
    return torch.rand((300, 1, 8, 8), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labelled(small_cnn: torch.nn.Module, images: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """``small_cnn``, six of ``images``, and the labels (6,) that it gives them."""
    x = images[:6]
    return small_cnn, x, small_cnn(x).argmax(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets (RBL_DATA, or ../shared/data); skips where there is none."""
    for candidate in (os.environ.get("RBL_DATA"), Path(__file__).resolve().parents[2] / "shared" / "data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no real data: set RBL_DATA to a folder with MNIST/raw and cifar10/cifar10.npz")

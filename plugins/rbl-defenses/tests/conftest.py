"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rbl_datasets.digits import Digits
from robustbench_lite import DatasetBundle

torch.set_num_threads(1)  # the suite runs on all cores already


@pytest.fixture(scope="session")
def digits() -> DatasetBundle:
    """1,297 training and 500 test images of 8x8 pixels."""
    return Digits()(Path())

"""Wrappers whose network is trained behind them: what that is worth on clean images, with the weights that are shipped."""

from __future__ import annotations

import pytest
import torch

from robustbench_lite.data import DatasetBundle, fetch
from robustbench_lite.registry import load
from robustbench_lite.resolve import resolve_defense


@pytest.mark.parametrize("wrapper", ["halftone", "bart"])
def test_a_network_that_was_trained_on_transformed_images_reads_them_better(wrapper: str, digits: DatasetBundle) -> None:
    x, y = fetch(digits.test, range(300))
    right = []
    for selector in (wrapper, f"{wrapper}-training"):
        module = resolve_defense(load(), selector, digits.info).build()
        torch.manual_seed(0)
        with torch.no_grad():
            right.append((module(x).argmax(1) == y).float().mean().item())
    assert right[1] > right[0] + 0.1

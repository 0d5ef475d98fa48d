"""On a GPU: the conformance suite of every defense, and the answers of the CPU.

``RBL_TEST_DEVICE=cuda:1`` takes another one, and ``cpu:0`` shows that the tests themselves are sound. That no defense mixes
devices is known without a GPU: ``device-of-the-images`` in ``test_conformance.py``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from zoo import ZOO

from robustbench_lite.registry import Registry, load
from robustbench_lite.runner import prepare_torch
from robustbench_lite.testing import DefenseSubject, check_defense

DEVICE = os.environ.get("RBL_TEST_DEVICE", "cuda:0")

if DEVICE.startswith("cuda") and not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_torch(DEVICE, None)
    monkeypatch.setenv("RBL_HOME", str(tmp_path))  # the shipped weights alone


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


@pytest.mark.parametrize("selector", ZOO)
def test_it_conforms(selector: str, registry: Registry) -> None:
    outcomes = check_defense(registry, f"rbl/{selector}", device=DEVICE)
    assert not [f"{o.check}: {o.reason}" for o in outcomes if o.status == "failed"]


@pytest.mark.parametrize("selector", ZOO)
def test_cpu_and_gpu_agree(selector: str, registry: Registry) -> None:
    """On 128 digits, up to one of them, which rounding may turn."""
    here, there = (DefenseSubject(registry, f"rbl/{selector}", device=device) for device in ("cpu", DEVICE))
    if here.resolved.stochastic:
        pytest.skip("it is stochastic, and may draw from torch's generator, which has other numbers on a GPU")
    x, ids = here.images.x, torch.arange(len(here.images.x))
    expected, found = (subject.keyed()(x, ids).argmax(1) for subject in (here, there))
    assert int((expected != found).sum()) <= 1

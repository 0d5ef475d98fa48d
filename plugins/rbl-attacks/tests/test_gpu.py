"""On a GPU: the conformance suite of every attack, the linear oracle, and the robust accuracies of the CPU.

``RBL_TEST_DEVICE=cuda:1`` takes another one, and ``cpu`` shows that the tests themselves are sound. That no attack mixes
devices is known without a GPU: ``device-of-the-images`` in ``test_conformance.py``.
"""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from golden_networks import EXAMPLE, Attack, robust_accuracy
from linear_problem import distances, problem
from test_conformance import conformance
from test_linear import WHITE_BOX

from rbl_attacks.apgd import APGDCE, APGDT
from rbl_attacks.bim import BIM
from rbl_attacks.fab import FABT
from rbl_attacks.fgsm import FGSM
from rbl_attacks.pgd import PGD
from rbl_attacks.square import Square
from robustbench_lite import Threat
from robustbench_lite.runner import prepare_torch
from robustbench_lite.testing import make_target

DEVICE = os.environ.get("RBL_TEST_DEVICE", "cuda:0")

if DEVICE.startswith("cuda") and not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

pytestmark = pytest.mark.slow
globals().update(conformance(DEVICE))


@pytest.fixture(autouse=True, scope="module")
def _settings() -> None:
    prepare_torch(DEVICE, None)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", WHITE_BOX)
def test_beats_exactly_what_is_nearer_than_eps(name: str, norm: str) -> None:
    model, x, y = problem()
    middle = np.sort(distances(norm))[len(x) // 2 - 1 : len(x) // 2 + 1]
    threat = Threat(norm, float(middle.mean()))
    there, images, labels = copy.deepcopy(model).to(DEVICE), x.to(DEVICE), y.to(DEVICE)
    target, rng = make_target(there, images, labels, threat)
    points = WHITE_BOX[name](target, images, labels, threat, rng)
    assert points.device == images.device
    beaten = (model(points.cpu()).argmax(1) != y).numpy()
    assert np.array_equal(beaten, distances(norm) < threat.eps)


AGREEING: dict[str, tuple[Attack, str]] = {
    "fgsm": (FGSM(), "gradient"),
    "bim": (BIM(), "gradient"),
    "pgd": (PGD(), "gradient"),
    "apgd-ce": (APGDCE(), "gradient"),
    "apgd-t": (APGDT(steps=20), "gradient"),
    "fab-t": (FABT(steps=20), "gradient"),
    "square": (Square(queries=300), "scores"),
}


@pytest.mark.parametrize("network", ["std", "at"])
@pytest.mark.parametrize(
    ("name", "threat"),
    [
        (name, threat)
        for name in AGREEING
        for threat in ("linf:0.12", "l2:0.6", "l1:1.5")
        if (name, threat[:2]) != ("bim", "l1")
    ],
)
def test_cpu_and_gpu_agree(name: str, threat: str, network: str) -> None:
    """Up to one of 400 examples, which rounding may turn."""
    attack, access = AGREEING[name]
    there = robust_accuracy(network, threat, attack, access=access, device=DEVICE)
    assert there == pytest.approx(robust_accuracy(network, threat, attack, access=access), abs=1.1 * EXAMPLE)

"""On a linear model everything is known: each white-box attack beats exactly what can be beaten."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_problem import distances, margins, problem

from rbl_attacks.apgd import APGDCE, APGDDLR, APGDT
from rbl_attacks.fgsm import FGSM
from rbl_attacks.geometry import linear_optimum
from rbl_attacks.noise import GaussianNoise, UniformNoise
from rbl_attacks.pgd import PGD
from rbl_attacks.square import Square
from robustbench_lite import Threat
from robustbench_lite.testing import make_target
from robustbench_lite.testing.closed_form import lowest_margin

WHITE_BOX = {
    "fgsm": FGSM(),
    "pgd": PGD(steps=20),
    "pgd-zero": PGD(steps=20, start="zero"),
    "pgd-margin": PGD(steps=20, loss="margin", restarts=2),
    "apgd-ce": APGDCE(steps=20),
    "apgd-dlr": APGDDLR(steps=20),  # two classes: on the margin, as apgd-t
    "apgd-t": APGDT(steps=20),
}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", WHITE_BOX)
def test_beats_exactly_what_is_nearer_than_eps(name: str, norm: str) -> None:
    model, x, y = problem()
    distance = distances(norm)
    ordered = np.sort(distance)
    # Between two neighbours in the middle, so that half of the examples can be beaten and rounding decides nothing.
    eps = float((ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2)
    threat = Threat(norm, eps)
    target, rng = make_target(model, x, y, threat)
    x_adv = WHITE_BOX[name](target, x, y, threat, rng)
    beaten = (model(x_adv).argmax(1) != y).numpy()
    assert np.array_equal(beaten, distance < eps)
    assert np.array_equal(target.broken.numpy() | beaten, beaten)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    "attack", [PGD(steps=20), APGDCE(steps=20), APGDT(steps=20), FGSM()], ids=["pgd", "apgd-ce", "apgd-t", "fgsm"]
)
def test_reaches_the_lowest_margin_where_nothing_can_be_beaten(attack: PGD | APGDCE | APGDT | FGSM, norm: str) -> None:
    model, x, y = problem()
    far = distances(norm) > np.median(distances(norm))
    x, y = x[far], y[far]
    eps = 0.9 * float(distances(norm)[far].min())
    threat = Threat(norm, eps)
    target, rng = make_target(model, x, y, threat)
    x_adv = attack(target, x, y, threat, rng)
    w, b = margins(model, y)
    images = x.double().flatten(1).numpy()
    best = np.array([lowest_margin(images[i], w[i], b[i], eps, norm) for i in range(len(x))])
    clean = (w * images).sum(1) + b
    reached = (w * x_adv.double().flatten(1).numpy()).sum(1) + b
    assert not target.broken.any()
    assert (reached >= best - 1e-4).all()
    assert ((reached - best) / (clean - best)).max() < 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_attack_beats_what_is_further_than_eps(norm: str) -> None:
    model, x, y = problem()
    far = distances(norm) > np.median(distances(norm))
    x, y = x[far], y[far]
    eps = 0.99 * float(distances(norm)[far].min())
    for attack, access in (
        (Square(queries=60), "scores"),
        (UniformNoise(), "none"),
        (GaussianNoise(), "none"),
        (PGD(), "gradient"),
    ):
        target, rng = make_target(model, x, y, Threat(norm, eps), access=access)
        x_adv = attack(target, x, y, Threat(norm, eps), rng)
        assert (model(x_adv).argmax(1) == y).all()
        assert not target.broken.any()


@given(
    norm=st.sampled_from(["linf", "l2", "l1"]),
    eps=st.floats(0.01, 30),
    seed=st.integers(0, 1000),
    zeros=st.floats(0, 1),
)
def test_linear_optimum_is_the_closed_form(norm: str, eps: float, seed: int, zeros: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(3, 1, 4, 5, generator=generator) * 1.6 - 0.3).clamp(0, 1)
    gradient = torch.randn(3, 1, 4, 5, generator=generator) * (torch.rand(3, 1, 4, 5, generator=generator) >= zeros)
    threat = Threat(norm, eps)
    point = linear_optimum(x, gradient, threat)
    assert threat.contains(x, point).all()
    assert threat.in_box(point).all()
    gain = (gradient.double() * (point.double() - x.double())).flatten(1).sum(1)
    for i in range(3):
        w = -gradient[i].double().flatten().numpy()
        best = -lowest_margin(x[i].double().flatten().numpy(), w, -float(w @ x[i].double().flatten().numpy()), eps, norm)
        assert gain[i].item() == pytest.approx(best, rel=1e-5, abs=1e-5)

"""A3: as strong as AutoAttack for a fraction of its passes, and each example on its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_networks import EXAMPLE, Affine, fixture
from linear_problem import distances, problem

from rbl_attacks.a3 import A3
from robustbench_lite import Threat
from robustbench_lite.testing import Linear, make_target

# AutoAttack standard, for an example that it never beats: apgd-ce, 9 targets of apgd-t, 9 of fab-t, square.
AUTOATTACK = 2 * 100 + 9 * 2 * 100 + 9 * 3 * 100 + 5000


@pytest.mark.parametrize(
    ("name", "threat", "autoattack"),
    [("std", "linf:0.12", 0.2875), ("at", "linf:0.12", 0.8000), ("std", "l2:1.0", 0.0000), ("at", "l2:1.0", 0.0325)],
)
def test_as_strong_as_autoattack_at_a_fifth_of_its_passes(name: str, threat: str, autoattack: float) -> None:
    model, x, y = fixture(name)
    limits = Threat.parse(threat)
    target, rng = make_target(model, x, y, limits)
    x_adv = A3()(target, x, y, limits, rng)
    assert limits.contains(x, x_adv).all()
    robust = int((model(x_adv).argmax(1) == y).sum()) * EXAMPLE
    assert robust <= autoattack + 1.1 * EXAMPLE
    passes = (target.forwards + target.backwards).double()
    assert passes.max() <= AUTOATTACK / 5
    assert passes.mean() < 500


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_beats_what_is_nearer_than_eps_on_a_linear_model(norm: str) -> None:
    """Under l2 up to the last percent: points are scaled into the ball and then clipped, a third of all values at a face."""
    model, x, y = problem()
    ordered = np.sort(distances(norm))
    eps = float((ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2)
    threat = Threat(norm, eps)
    target, rng = make_target(model, x, y, threat)
    A3()(target, x, y, threat, rng)
    beaten, distance = target.broken.numpy(), distances(norm)
    assert not beaten[distance > eps].any()
    assert beaten[distance < (eps if norm == "linf" else 0.99 * eps)].all()


@pytest.mark.parametrize("threat", ["linf:0.15", "l2:0.8"])
def test_an_example_gets_the_same_point_for_the_same_passes_whoever_else_is_there(threat: str) -> None:
    model, x, y = fixture("at")
    x, y, limits = x[:40], y[:40], Threat.parse(threat)
    target, rng = make_target(model, x, y, limits)
    attack = A3(restarts=6)
    whole = attack(target, x, y, limits, rng)
    rows = torch.tensor([31, 3, 8, 22, 5, 39, 17])
    few, some = make_target(model, x[rows], y[rows], limits, ids=rows, micro_batch=2)
    assert (attack(few, x[rows], y[rows], limits, some) - whole[rows]).abs().max() < 1e-5
    assert few.forwards.tolist() == target.forwards[rows].tolist()


def test_more_restarts_beat_all_that_fewer_beat_and_leave_the_others_nearer() -> None:
    model, x, y = fixture("at")
    x, y, limits = x[:80], y[:80], Threat.parse("linf:0.18")
    lost, margins = [], []
    for restarts in (1, 3, 8):
        target, rng = make_target(model, x, y, limits)
        logits = model(A3(restarts=restarts)(target, x, y, limits, rng)).detach()
        lost.append(target.broken)
        margins.append(logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1))
    for fewer, more in ((0, 1), (1, 2)):
        assert (lost[more] >= lost[fewer]).all()
        assert (margins[more] <= margins[fewer] + 1e-5)[~lost[more]].all()
    assert lost[2].sum() > lost[0].sum()


def test_the_scale_of_the_logits_changes_nothing() -> None:
    model, x, y = fixture("at")
    x, y, limits = x[:30], y[:30], Threat.parse("linf:0.15")
    points, passes = [], []
    for factor in (1.0, 2.0**-8, 2.0**8):
        target, rng = make_target(Affine(model, factor), x, y, limits)
        points.append(A3(restarts=5)(target, x, y, limits, rng))
        passes.append(target.forwards.tolist())
    assert torch.equal(points[0], points[1])
    assert torch.equal(points[0], points[2])
    assert passes[0] == passes[1] == passes[2]


def test_an_example_without_progress_leaves_after_three_runs() -> None:
    x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y, limits = torch.zeros(5, dtype=torch.int64), Threat("linf", 0.1)
    target, rng = make_target(Linear(torch.zeros(3, 36), torch.tensor([5.0, 0.0, -1.0])), x, y, limits)
    assert torch.equal(A3()(target, x, y, limits, rng), x)
    spent = (target.forwards + target.backwards).unique().tolist()
    assert spent == [A3(restarts=3).passes(3)]
    assert A3(restarts=3).passes(3) < A3().passes(3) / 10

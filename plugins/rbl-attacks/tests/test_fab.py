"""FAB and FAB-T: exact on linear models up to their overshoot, and as near as the published implementation on two networks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from golden_networks import fixture, minimal_sizes, robust_accuracy
from linear_problem import distances, problem
from torch import Tensor

from rbl_attacks.fab import FAB, FABT, FastAdaptiveBoundary, _around
from robustbench_lite import Target, Threat
from robustbench_lite.testing import Linear, make_target
from robustbench_lite.testing.closed_form import smallest_eps
from robustbench_lite.testing.problems import Problem

NORMS = ("linf", "l2", "l1")
BOTH = pytest.mark.parametrize("attack", [FAB(), FABT()], ids=["fab", "fab-t"])


def attacked(
    attack: FastAdaptiveBoundary, model: torch.nn.Module, x: Tensor, y: Tensor, norm: str
) -> tuple[np.ndarray, Target]:
    """(n,) judged sizes, inf where the point does not change the class; and the target."""
    threat = Threat(norm, math.inf)
    target, rng = make_target(model, x, y, threat, goal="minimal-norm")
    x_adv = attack(target, x, y, threat, rng)
    assert threat.in_box(x_adv).all()
    return torch.where(model(x_adv).argmax(1) != y, threat.size(x, x_adv), torch.inf).numpy(), target


@BOTH
@pytest.mark.parametrize("norm", NORMS)
def test_two_steps_leave_the_published_ratio(attack: FastAdaptiveBoundary, norm: str) -> None:
    """1.05 times the distance, pulled back to 0.945, and from there over the boundary again: 1.00521 times the distance."""
    model = Linear.binary((3, 8, 8))
    x = 0.5 + 0.5 * (torch.rand(300, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5)
    w = (model.weight[1] - model.weight[0]).detach().double()
    margin = (x.double().flatten(1) @ w + (model.bias[1] - model.bias[0]).detach().double()).abs()
    exact = margin / {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]
    # No face of the box is in the way, and the margin is long enough for float32.
    fit = (margin > 0.3) & (1.1 * exact < 0.25)
    assert fit.sum() > 20
    ratio = attacked(attack, model, x[fit], model(x[fit]).argmax(1), norm)[0] / exact[fit].numpy()
    assert ratio == pytest.approx(1.05 - 0.045 * 1.05 * (1 - 0.055 / 1.055), abs=1e-4)


@BOTH
@pytest.mark.parametrize("norm", NORMS)
def test_near_the_optimum_where_faces_of_the_box_are_in_the_way(attack: FastAdaptiveBoundary, norm: str) -> None:
    model, x, y = problem()
    ratio = attacked(attack, model, x, y, norm)[0] / distances(norm)
    assert ratio.min() >= 1 - 1e-6
    assert ratio.max() <= 1.01


@pytest.mark.parametrize("norm", NORMS)
def test_refined_it_is_exact(norm: str) -> None:
    model, x, y = problem()
    ratio = attacked(FAB(refine=20), model, x, y, norm)[0] / distances(norm)
    assert ratio == pytest.approx(1, abs=1.1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_with_several_classes_the_nearest_counts(norm: str) -> None:
    """The class that is likeliest at the clean image need not be the nearest: all targets are tried, the smallest is kept."""
    task = Problem.make(classes=5, n=40)
    exact = task.distances(norm)
    every, _ = attacked(FABT(), task.model, task.x, task.y, norm)
    first, _ = attacked(FABT(targets=1), task.model, task.x, task.y, norm)
    assert (every / exact).max() <= 1.011
    assert (every <= first).all()
    assert (first / exact).max() > 1.05


@BOTH
@pytest.mark.parametrize("norm", NORMS)
def test_a_longer_run_is_never_farther(attack: FastAdaptiveBoundary, norm: str) -> None:
    model, x, y = (part[:24] if isinstance(part, Tensor) else part for part in fixture("at"))
    sizes = [attacked(type(attack)(steps=steps), model, x, y, norm)[0] for steps in (1, 4, 16)]
    sizes.append(attacked(type(attack)(steps=16, restarts=3), model, x, y, norm)[0])
    for shorter, longer in pairwise(sizes):
        assert (longer <= shorter).all()
        assert (longer < shorter).any()


def test_with_a_radius_an_example_leaves_at_its_first_point_inside() -> None:
    model, x, y = problem()
    eps = float(np.median(distances("l2")))
    threat = Threat("l2", eps)
    target, rng = make_target(model, x, y, threat)
    x_adv = FAB(steps=30)(target, x, y, threat, rng)
    near, far = distances("l2") * 1.006 < eps, distances("l2") > eps
    assert target.broken[torch.from_numpy(near)].all()
    assert not target.broken[torch.from_numpy(far)].any()
    assert (x_adv == x)[torch.from_numpy(far)].all()
    assert target.forwards[torch.from_numpy(far)].tolist() == [60] * int(far.sum())
    quick = torch.from_numpy(distances("l2") * 1.06 < eps)
    assert quick.sum() > 10
    assert target.forwards[quick].float().median() == 2
    assert target.backwards[quick].float().median() == 1


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_begin_halfway_to_what_is_known_or_to_the_radius(norm: str) -> None:
    model, x, y = (part[:40] if isinstance(part, Tensor) else part for part in fixture("at"))
    x = x.clamp(0.25, 0.75)
    y = model(x).argmax(1)
    inside = Threat(norm, {"linf": 0.1, "l2": 0.5, "l1": 1.0}[norm])
    target, rng = make_target(model, x, y, inside)
    assert inside.size(x, _around(target, x, inside, [rng])).numpy() == pytest.approx(0.5 * inside.eps, rel=1e-3)
    free = Threat(norm, math.inf)
    target, rng = make_target(model, x, y, free, goal="minimal-norm")
    known = free.size(x, FAB(steps=3)(target, x, y, free, rng))
    most = {"linf": 0.3, "l2": 1.0, "l1": 5.0}[norm]
    start = _around(target, x, free, [rng])
    reach = torch.where(target.broken, known, torch.inf).clamp_max(most)
    assert (free.size(x, start) <= 0.5 * reach * (1 + 1e-4)).all()  # less where the box is in the way
    assert (free.size(x, start) > 0.2 * reach).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("attack", "classes"), [(FAB(steps=7), 4), (FAB(steps=7), 2), (FABT(steps=5, targets=2), 4)])
def test_out_of_reach_nothing_is_found_at_the_cost_that_is_declared(attack: FAB | FABT, classes: int, norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    bias = torch.zeros(classes)
    bias[0] = 1000.0
    model = Linear(torch.randn(classes, 64, generator=generator), bias)
    x, y = torch.rand(5, 1, 8, 8, generator=generator), torch.zeros(5, dtype=torch.int64)
    threat = Threat(norm, math.inf)
    target, rng = make_target(model, x, y, threat, goal="minimal-norm")
    assert torch.equal(attack(target, x, y, threat, rng), x)
    assert (target.forwards + target.backwards).tolist() == [attack.passes(classes)] * 5


def test_a_refusal_is_no_success() -> None:
    """Towards class 1 lies a region where the third column, "refuse", leads: the boundary that counts is behind it."""
    model = Linear(torch.tensor([[0.0] * 4, [1.0] * 4, [0.5] * 4]), torch.tensor([2.0, 0.0, 0.5]))
    x, y = (
        torch.full((3, 1, 2, 2), 0.2) + torch.tensor([0.0, 0.02, 0.05])[:, None, None, None],
        torch.zeros(3, dtype=torch.int64),
    )
    threat = Threat("l2", math.inf)
    for attack in (FAB(refine=25), FABT(refine=25)):
        target, rng = make_target(model, x, y, threat, goal="minimal-norm", rejects=True)
        x_adv = attack(target, x, y, threat, rng)
        assert (model(x_adv).argmax(1) == 1).all()
        exact = [smallest_eps(x[i].double().flatten().numpy(), -np.full(4, 1.0), 2.0, "l2") for i in range(3)]
        assert threat.size(x, x_adv).numpy() == pytest.approx(np.array(exact), rel=1e-3)


GOLDEN = [
    ("std", "linf", 0.0992),
    ("std", "l2", 0.5236),
    ("std", "l1", 1.4091),
    ("at", "linf", 0.1790),
    ("at", "l2", 0.6962),
    ("at", "l1", 1.3651),
]


@pytest.mark.parametrize(("name", "norm", "published"), GOLDEN)
def test_fab_on_eighty_digits(name: str, norm: str, published: float) -> None:
    """The published median of all lies within three standard errors, in ranks, of the median of the first eighty."""
    sizes = minimal_sizes(name, norm, FAB(), rows=slice(80)).sort().values
    assert sizes.isfinite().all()
    assert sizes[27] <= published <= sizes[52]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm", "published"), GOLDEN)
def test_fab_on_all_digits(name: str, norm: str, published: float) -> None:
    sizes = minimal_sizes(name, norm, FAB())
    assert sizes.isfinite().all()
    assert sizes.median().item() == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(
    ("name", "threat", "published"),
    [
        ("std", "linf:0.12", 0.2950),
        ("std", "l2:1.0", 0.0050),
        ("std", "l1:4.0", 0.0000),
        pytest.param("at", "linf:0.12", 0.8025, marks=pytest.mark.slow),
        ("at", "l2:1.0", 0.0450),
        ("at", "l1:4.0", 0.0000),
    ],
)
def test_fab_t_with_a_radius(name: str, threat: str, published: float) -> None:
    assert robust_accuracy(name, threat, FABT()) == pytest.approx(published, abs=0.01)

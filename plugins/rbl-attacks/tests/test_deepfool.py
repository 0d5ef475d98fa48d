"""DeepFool: one exact step on linear models, and the published sizes on two networks."""

from __future__ import annotations

import math

import pytest
import torch
from golden_networks import fixture, minimal_sizes
from linear_problem import distances, problem
from torch import Tensor

from rbl_attacks.deepfool import SLACK, DeepFool
from robustbench_lite import Threat
from robustbench_lite.testing import CoinFlip, Linear, Masked, make_target

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


def inner_images(n: int) -> Tensor:
    """So far from the faces of the box that no short way reaches one."""
    return 0.5 + 0.5 * (torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5)


@BOTH
def test_a_linear_model_takes_one_step_of_known_length(norm: str) -> None:
    model, x = Linear.binary((3, 8, 8)), inner_images(50)
    y, threat = model(x).argmax(1), Threat(norm, math.inf)
    target, rng = make_target(model, x, y, threat, goal="minimal-norm")
    size = threat.size(x, DeepFool()(target, x, y, threat, rng))
    w = (model.weight[1] - model.weight[0]).detach().double()
    margin = (x.double().flatten(1) @ w + (model.bias[1] - model.bias[0]).detach().double()).abs()
    away = margin / (w.abs().sum() if norm == "linf" else w.norm())
    assert size.numpy() == pytest.approx((1.02 * (away + SLACK)).numpy(), rel=1e-3, abs=1e-6)
    assert target.forwards.tolist() == [3] * 50  # the clean image, its gradient, the point
    assert target.backwards.tolist() == [1] * 50


@BOTH
def test_refined_it_is_exact_also_at_faces_of_the_box(norm: str) -> None:
    model, x, y = problem()
    threat = Threat(norm, math.inf)
    target, rng = make_target(model, x, y, threat, goal="minimal-norm")
    ratio = threat.size(x, DeepFool(refine=20)(target, x, y, threat, rng)).numpy() / distances(norm)
    assert ratio.min() >= 1 - 1e-4
    assert ratio.max() <= 1.001


@BOTH
def test_refining_never_lengthens(norm: str) -> None:
    plain, refined = (minimal_sizes("at", norm, DeepFool(refine=refine), rows=slice(100)) for refine in (0, 12))
    assert (refined <= plain).all()
    assert (refined < plain).any()


def test_only_candidates_cost_backward_passes() -> None:
    model, x, y = (part[:20] if isinstance(part, Tensor) else part for part in fixture("at"))
    threat = Threat("l2", math.inf)
    target, rng = make_target(model, x, y, threat, goal="minimal-norm")
    DeepFool(candidates=4)(target, x, y, threat, rng)
    steps = target.backwards // 3
    assert (target.backwards == 3 * steps).all()
    assert (target.forwards == 1 + 2 * steps).all()
    assert target.broken.all()


def test_out_of_reach_nothing_is_found_at_the_cost_that_is_declared() -> None:
    generator = torch.Generator().manual_seed(0)
    model = Linear(torch.randn(4, 64, generator=generator), torch.tensor([1000.0, 0.0, 0.0, 0.0]))
    x, y, threat = torch.rand(5, 1, 8, 8, generator=generator), torch.zeros(5, dtype=torch.int64), Threat("l2", math.inf)
    for attack in (DeepFool(steps=6), DeepFool(steps=6, candidates=3)):
        target, rng = make_target(model, x, y, threat, goal="minimal-norm")
        assert torch.equal(attack(target, x, y, threat, rng), x)
        assert (target.forwards + target.backwards).tolist() == [attack.passes(4)] * 5


@BOTH
def test_without_gradients_it_stops_at_once(norm: str) -> None:
    x = inner_images(6)
    model = Masked(Linear.binary((3, 8, 8)))
    y, threat = model(x).argmax(1), Threat(norm, math.inf)
    target, rng = make_target(model, x, y, threat, goal="minimal-norm")
    assert torch.equal(DeepFool()(target, x, y, threat, rng), x)
    assert target.forwards.tolist() == [2] * 6


@pytest.mark.parametrize(
    ("name", "norm", "published"),
    [("std", "l2", 0.5259), ("std", "linf", 0.0994), ("at", "l2", 0.7681), ("at", "linf", 0.1947)],
)
def test_the_published_sizes(name: str, norm: str, published: float) -> None:
    sizes = minimal_sizes(name, norm, DeepFool())
    assert sizes.isfinite().all()
    assert sizes.median().item() == pytest.approx(published, rel=0.02)


@BOTH
def test_it_goes_on_over_a_random_boundary_until_the_point_is_sure(norm: str) -> None:
    model, x = CoinFlip(Linear.binary((3, 8, 8)), sigma=0.3), inner_images(40)
    y = model.base(x).argmax(1)
    target, rng = make_target(model, x, y, Threat(norm, math.inf), goal="minimal-norm", stochastic=True, eot=4, confirm=16)
    points = DeepFool()(target, x, y, Threat(norm, math.inf), rng)
    assert target.broken.float().mean() > 0.9
    assert (model.base(points).argmax(1) != y)[target.broken].float().mean() > 0.95

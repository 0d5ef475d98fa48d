"""Projections against slow references: bisection, SciPy's quadratic programming, and trying out all subsets."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from robustbench_lite import Threat, projections
from robustbench_lite.projections import Radius

Array = np.ndarray
BALLS: dict[str, Callable[[torch.Tensor, Radius], torch.Tensor]] = {
    "linf": projections.linf,
    "l2": projections.l2,
    "l1": projections.l1,
    "l0": projections.l0,
}
BOXED: dict[str, Callable[[torch.Tensor, torch.Tensor, Radius], torch.Tensor]] = {
    "l2": projections.l2_box,
    "l1": projections.l1_box,
    "l0": projections.l0_box,
}
DRAWS = {"seed": st.integers(0, 2**31), "d": st.integers(1, 40), "eps": st.floats(0.01, 5), "spread": st.floats(0.01, 5)}


def problem(seed: int, n: int, d: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Perturbations with ties, zeros and steps out of the box, and images with values on its edge; float64 (n, d)."""
    g = np.random.default_rng(seed)
    x = np.clip(g.uniform(-0.3, 1.3, (n, d)), 0, 1)
    delta = spread * g.normal(size=(n, d))
    delta[g.random((n, d)) < 0.2] = 0
    delta[g.random((n, d)) < 0.2] = spread / 2
    return torch.from_numpy(delta), torch.from_numpy(x)


def length(norm: str, delta: Array) -> Array:
    """(n,) in one norm."""
    measures: dict[str, Array] = {
        "linf": np.abs(delta).max(1),
        "l2": np.linalg.norm(delta, axis=1),
        "l1": np.abs(delta).sum(1),
        "l0": (delta != 0).sum(1),
    }
    return measures[norm]


def bisected(shrink: Callable[[float], Array], measure: Callable[[Array], float], eps: float, top: float) -> Array:
    """The weakest shrinkage in [0, top] that brings ``measure`` to eps."""
    if measure(shrink(0.0)) <= eps:
        return shrink(0.0)
    low, high = 0.0, top
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if measure(shrink(middle)) <= eps else (middle, high)
    return shrink(high)


def reference(norm: str, delta: Array, x: Array | None, eps: float) -> Array:
    """One row by bisection on the multiplier of the norm's constraint."""
    low, high = (-np.inf, np.inf) if x is None else (-x, 1 - x)
    if norm == "l1":
        return bisected(
            lambda lam: np.clip(np.sign(delta) * np.maximum(np.abs(delta) - lam, 0), low, high),
            lambda z: float(np.abs(z).sum()),
            eps,
            float(np.abs(delta).max()) + 1,
        )
    return bisected(
        lambda mu: np.clip(delta / (1 + mu), low, high),
        lambda z: float(np.linalg.norm(z)),
        eps,
        float(np.linalg.norm(delta)) / eps + 1,
    )


@settings(deadline=None)
@given(norm=st.sampled_from(["l1", "l2"]), boxed=st.booleans(), **DRAWS)
def test_l1_and_l2_agree_with_bisection(norm: str, boxed: bool, seed: int, d: int, eps: float, spread: float) -> None:
    delta, x = problem(seed, 3, d, spread)
    got = BOXED[norm](delta, x, eps) if boxed else BALLS[norm](delta, eps)
    for row in range(3):
        want = reference(norm, delta[row].numpy(), x[row].numpy() if boxed else None, eps)
        np.testing.assert_allclose(got[row].numpy(), want, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_joint_projections_agree_with_a_quadratic_program(norm: str, seed: int) -> None:
    delta, x = problem(seed, 1, 6, 0.8)
    y, low, high, eps = delta[0].numpy(), -x[0].numpy(), 1 - x[0].numpy(), 0.9
    if norm == "l1":  # z = up - down makes the sum of absolute values linear
        room = {"type": "ineq", "fun": lambda v: eps - v.sum()}
        start, bounds = np.zeros(12), [(0, h) for h in high] + [(0, -b) for b in low]
    else:
        room = {"type": "ineq", "fun": lambda v: eps**2 - (v**2).sum()}
        start, bounds = np.zeros(6), list(zip(low, high, strict=True))

    def split(v: Array) -> Array:
        return v[:6] - v[6:] if norm == "l1" else v

    found = minimize(lambda v: ((split(v) - y) ** 2).sum(), start, bounds=bounds, constraints=room, options={"ftol": 1e-13})
    assert found.success
    np.testing.assert_allclose(BOXED[norm](delta, x, eps)[0].numpy(), split(found.x), atol=2e-5)


@settings(deadline=None)
@given(norm=st.sampled_from(["linf", "l2", "l1"]), boxed=st.booleans(), **DRAWS)
def test_convex_projections_meet_the_condition_of_the_nearest_point(
    norm: str, boxed: bool, seed: int, d: int, eps: float, spread: float
) -> None:
    """z is nearest to y exactly when (y - z).(c - z) <= 0 for every c of the set; here for many random c."""
    delta, x = problem(seed, 2, d, spread)
    boxed = boxed and norm != "linf"
    point = (BOXED[norm](delta, x, eps) if boxed else BALLS[norm](delta, eps)).numpy()
    assert (length(norm, point) <= eps * (1 + 1e-9)).all()
    if boxed:
        assert ((x.numpy() + point >= -1e-12) & (x.numpy() + point <= 1 + 1e-12)).all()
    g = np.random.default_rng(seed)
    for _ in range(30):
        rival = g.normal(size=point.shape) * 10.0 ** g.uniform(-2, 1)
        rival[g.random(rival.shape) < g.random()] = 0
        if boxed:
            rival = np.clip(rival, -x.numpy(), 1 - x.numpy())
        rival *= np.minimum(1, eps / np.maximum(length(norm, rival), 1e-300))[:, None]
        gain = ((delta.numpy() - point) * (rival - point)).sum(1)
        assert (gain <= 1e-8 * (1 + spread**2 * d)).all()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("k", [0, 1, 2, 5, 9])
def test_l0_is_the_best_of_all_subsets(seed: int, k: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(1, 2, 1, 5, generator=g) * 1.6 - 0.3).clamp(0, 1)
    delta = torch.randn(1, 2, 1, 5, generator=g)
    clipped = delta.clamp(-x, 1 - x)
    for got, allowed in ((projections.l0(delta, k), delta), (projections.l0_box(delta, x, k), clipped)):
        best = min(
            float((delta - torch.where(mask(kept), allowed, torch.zeros(()))).square().sum())
            for kept in combinations(range(5), min(k, 5))
        )
        assert float((delta - got).square().sum()) == pytest.approx(best, abs=1e-6)
        assert int((got != 0).any(1).sum()) <= k


def mask(kept: tuple[int, ...]) -> torch.Tensor:
    """(1, 1, 1, 5): these pixels."""
    chosen = torch.zeros(5, dtype=torch.bool)
    chosen[list(kept)] = True
    return chosen.view(1, 1, 1, 5)


def test_l0_breaks_ties_by_position() -> None:
    assert projections.l0(torch.ones(1, 6), 2).tolist() == [[1, 1, 0, 0, 0, 0]]
    assert projections.l0(torch.ones(1, 3000), 700)[0].nonzero()[:, 0].tolist() == list(range(700))
    assert projections.l0(torch.ones(1, 3, 2, 2), 1)[0, :, 0, 0].tolist() == [1, 1, 1]
    assert projections.l0(torch.ones(1, 3, 2, 2), 1).sum() == 3


@settings(deadline=None)
@given(norm=st.sampled_from(sorted(BALLS)), **DRAWS)
def test_single_precision_perturbations(norm: str, seed: int, d: int, eps: float, spread: float) -> None:
    """Feasible up to rounding, unchanged when projected again, and unchanged bit for bit when inside."""
    delta, x = (t.float() for t in problem(seed, 4, d, spread))
    eps = round(eps) if norm == "l0" else eps
    inside = torch.from_numpy(length(norm, delta.double().numpy()) <= eps)
    point = BALLS[norm](delta, eps)
    runs = [(point, BALLS[norm](point, eps), inside)]
    if norm in BOXED:
        fits = inside & ((-x.double() <= delta) & (delta <= 1 - x.double())).all(1)
        point = BOXED[norm](delta, x, eps)
        runs.append((point, BOXED[norm](point, x, eps), fits))
    for point, again, kept in runs:
        assert point.dtype == torch.float32
        assert (length(norm, point.double().numpy()) <= eps * (1 + 5e-7)).all()
        torch.testing.assert_close(again, point, rtol=0, atol=1e-7 * max(1, eps))
        assert torch.equal(point[kept], delta[kept])


@pytest.mark.parametrize("name", ["linf", "l2", "l1", "l0", "l2_box", "l1_box", "l0_box"])
def test_each_example_may_have_its_own_radius(name: str) -> None:
    delta, x = problem(1, 6, 12, 1.0)
    delta, x = delta.view(6, 3, 2, 2), x.view(6, 3, 2, 2)
    radii = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 100.0])
    function = getattr(projections, name)
    extra = (x,) if name.endswith("_box") else ()
    together = function(delta, *extra, radii)
    for row, radius in enumerate(radii.tolist()):
        alone = function(delta[row : row + 1], *(e[row : row + 1] for e in extra), radius)
        assert torch.equal(together[row], alone[0])
    assert (together[0] == 0).all()


@pytest.mark.parametrize("outside", [[], [3], [0, 2, 5], list(range(6))])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_only_images_outside_are_moved_and_each_as_if_it_were_alone(norm: str, outside: list[int]) -> None:
    x, threat = torch.rand(6, 2, 4, 3, generator=torch.Generator().manual_seed(0)), Threat(norm, 0.5)
    x_adv = (x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    x_adv[outside] = 1.5 - x[outside]
    given, found = x_adv.clone(), threat.project(x, x_adv)
    assert torch.equal(x_adv, given)
    assert [row for row in range(6) if not torch.equal(found[row], x_adv[row])] == outside
    assert threat.contains(x, found).all()
    for row in range(6):
        assert torch.equal(found[row], threat.project(x[row, None], x_adv[row, None])[0])


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_nothing_to_project(norm: str) -> None:
    assert BALLS[norm](torch.zeros(0, 3, 2, 2), 1.0).shape == (0, 3, 2, 2)
    assert torch.equal(BALLS[norm](torch.zeros(2, 5), 0.0), torch.zeros(2, 5))
    if norm in BOXED:
        assert BOXED[norm](torch.zeros(0, 4), torch.zeros(0, 4), 1.0).shape == (0, 4)
        corner = torch.tensor([[0.0, 1.0, 1.0]])
        assert torch.equal(BOXED[norm](torch.tensor([[-3.0, 2.0, 1.0]]), corner, 1.0), torch.zeros(1, 3))


def test_l1_box_spends_what_the_box_cuts_off_elsewhere() -> None:
    """Clipping after an l1 projection would leave 0.9 of the budget unused."""
    x = torch.tensor([[0.9, 0.5, 0.5]], dtype=torch.float64)
    delta = torch.tensor([[5.0, 0.4, -0.4]], dtype=torch.float64)
    torch.testing.assert_close(projections.l1_box(delta, x, 0.7), torch.tensor([[0.1, 0.3, -0.3]], dtype=torch.float64))


def test_large_images() -> None:
    """150528 values: sums must not lose the small ones."""
    delta, x = problem(0, 2, 150528, 0.1)
    for eps in (1.0, 75.0, 2000.0):
        point = projections.l1_box(delta, x, eps)
        assert (point.abs().sum(1) <= eps * (1 + 1e-9)).all()
        want = reference("l1", delta[0].numpy(), x[0].numpy(), eps)
        np.testing.assert_allclose(point[0].numpy(), want, atol=1e-9)

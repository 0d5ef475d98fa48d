"""Curves of robust accuracy: exact step functions, grids of budgets, areas and the radii between."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_lite.curves import mean_accuracy, radius_at, robust_curve, smallest_sizes, survival
from robustbench_lite.errors import UsageError
from robustbench_lite.results import CellResult, Curve
from robustbench_lite.statistics import wilson
from robustbench_lite.testing import make_cell
from robustbench_lite.threat import Threat

SIZES = st.lists(st.one_of(st.just(0.0), st.just(math.inf), st.floats(1e-3, 2)), min_size=1, max_size=30)


def stored(sizes: list[float], threat: str = "linf", attack: str = "a", **arrays: np.ndarray) -> CellResult:
    """A cell of these smallest sizes: 0 for a clean error, inf where nothing was found."""
    size = np.asarray(sizes)
    found = {
        "index": np.arange(len(size)),
        "clean_correct": size > 0,
        "success": np.isfinite(size) & (size > 0),
        "size": np.where(size > 0, size, np.inf),
        **{norm: np.where(np.isfinite(size), size, 0.0) for norm in ("linf", "l2", "l1", "l0")},
    }
    spec = {"threat": threat, "defense": {"label": "d"}, "attack": {"label": attack}}
    return CellResult(key=attack, spec=spec, arrays=found | arrays)


def test_a_minimal_norm_cell_gives_the_exact_steps():
    curve = robust_curve([stored([0.0, 0.1, 0.3, 0.3, math.inf])], "linf")
    assert curve.step
    assert curve.x.tolist() == [0.0, 0.1, 0.3]
    assert curve.y.tolist() == [0.8, 0.6, 0.2]
    assert curve.at([-1.0, 0.0, 0.05, 0.1, 0.29, 0.3, 9.0]).tolist()[1:] == [0.8, 0.8, 0.6, 0.6, 0.2, 0.2]
    assert np.isnan(curve.at(-1.0))
    assert (curve.low[1], curve.high[1]) == pytest.approx(wilson(3, 5))


def test_budgets_give_a_grid_and_what_broke_early_stays_broken():
    small = stored([0.05, math.inf, math.inf, 0.0], "linf:0.1", "small")
    large = stored([math.inf, 0.2, math.inf, 0.0], "linf:0.2", "large")
    curve = robust_curve([large, small, make_cell(n=4, threat="l2:1")], "linf")
    assert not curve.step
    assert curve.x.tolist() == [0.0, 0.1, 0.2]
    assert curve.y.tolist() == [0.75, 0.5, 0.25]
    assert curve.at(0.15) == pytest.approx(0.375)
    assert np.isnan(curve.at(0.21))


def test_rounding_does_not_save_an_example_at_its_own_radius():
    eps = Threat.parse("linf:8/255").eps
    curve = robust_curve([stored([eps + 2e-8, math.inf], "linf:8/255"), stored([math.inf, math.inf], attack="b")], "linf")
    assert curve.at(eps) == 0.5


@given(st.lists(st.tuples(SIZES.map(lambda s: s[0]), SIZES.map(lambda s: s[0])), min_size=1, max_size=20), st.randoms())
@settings(deadline=None, max_examples=60)
def test_curve_is_the_worst_case_at_every_radius_whatever_the_order(pairs, random):
    cells = [stored([p[k] if p[0] and p[1] else 0.0 for p in pairs], "linf", str(k)) for k in (0, 1)]
    curve = robust_curve(cells, "linf")
    for eps in (0.0, 0.01, 0.5, 3.0):
        worst = np.mean(cells[0].robust(Threat("linf", eps)) & cells[1].robust(Threat("linf", eps)))
        assert curve.at(eps) == pytest.approx(worst)
    assert curve.y[0] == np.mean(cells[0].arrays["clean_correct"])
    assert (np.diff(curve.y) < 0).all()
    assert (curve.low <= curve.y).all()
    assert (curve.y <= curve.high).all()
    order = list(range(len(pairs)))
    random.shuffle(order)
    shuffled = [stored([list(np.where(c.arrays["clean_correct"], c.arrays["size"], 0))[i] for i in order]) for c in cells]
    other = robust_curve(shuffled, "linf")
    assert np.array_equal(curve.x, other.x)
    assert np.array_equal(curve.y, other.y)


def test_points_of_other_norms_can_be_measured_alike():
    cell = stored([0.1, math.inf, 0.0], "linf:0.1", l2=np.array([0.7, 0.0, 0.0]))
    assert smallest_sizes([cell], "l2").tolist() == [0.7, math.inf, 0.0]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([], "none of the 0 results is of norm linf"),
        ([make_cell(threat="l2:1")], "none of the 1 results is of norm linf"),
        ([make_cell(n=0)], "no examples are stored for defense under kit-attack"),
        ([make_cell(), make_cell(n=30, attack="b")], "judged on different examples"),
    ],
)
def test_what_gives_no_curve_is_said(cells, said):
    with pytest.raises(UsageError, match=said):
        robust_curve(cells, "linf")


def test_readme_example_of_auac():
    curve = Curve(x=np.arange(6.0), y=np.array([96, 64.95, 34.52, 16.73, 7.81, 3.73]))
    assert mean_accuracy(curve, 5.0) == pytest.approx(34.775)


@given(SIZES, st.floats(0.1, 3))
@settings(deadline=None, max_examples=80)
def test_exact_area_is_the_mean_of_clipped_sizes(sizes, upto):
    assert mean_accuracy(survival(sizes), upto) == pytest.approx(np.minimum(sizes, upto).mean() / upto)


@given(SIZES, st.integers(2, 200))
@settings(deadline=None, max_examples=60)
def test_grid_area_differs_by_at_most_half_a_step_of_the_variation(sizes, points):
    exact = survival(sizes)
    x = np.linspace(0, 2.5, points)
    grid = Curve(x=x, y=exact.at(x))
    variation = (grid.y[0] - grid.y[-1]) * (x[1] - x[0]) / 2 / 2.5
    assert abs(mean_accuracy(grid, 2.5) - mean_accuracy(exact, 2.5)) <= variation + 1e-9


def test_a_constant_accuracy_is_its_own_mean():
    assert mean_accuracy(survival([math.inf] * 3 + [0.0]), 0.7) == pytest.approx(0.75)
    assert mean_accuracy(Curve(x=np.array([0.0, 1.0]), y=np.array([0.3, 0.3])), 1.0) == pytest.approx(0.3)


@pytest.mark.parametrize(("x", "upto"), [([0.1, 1.0], 1.0), ([0.0, 1.0], 0.5), ([0.0, 1.0], 2.0), ([0.0, 1.0], math.inf)])
def test_an_area_needs_both_ends(x, upto):
    with pytest.raises(UsageError):
        mean_accuracy(Curve(x=np.array(x), y=np.array([1.0, 0.5])), upto)


def test_radius_at_which_accuracy_falls():
    curve = survival([0.0, 0.1, 0.2, 0.3, math.inf])
    assert [radius_at(curve, a) for a in (1.0, 0.8, 0.6, 0.5, 0.2, 0.1)] == [0.0, 0.0, 0.1, 0.2, 0.3, math.inf]
    grid = Curve(x=np.array([0.0, 0.1]), y=np.array([0.9, 0.6]))
    assert radius_at(grid, 0.6) == 0.1
    assert math.isnan(radius_at(grid, 0.5))


@pytest.mark.parametrize(
    "wrong",
    [{"x": [0.0, 0.0], "y": [1.0, 1.0]}, {"x": [], "y": []}, {"x": [0.0], "y": [1.0, 1.0]}, {"x": [[0.0]], "y": [[1.0]]}],
)
def test_curves_are_checked(wrong):
    with pytest.raises(ValueError, match="vectors of one length"):
        Curve(**{name: np.array(values) for name, values in wrong.items()})


@pytest.mark.parametrize("wrong", [[], [math.nan], [-1.0]])
def test_sizes_are_checked(wrong):
    with pytest.raises(ValueError, match="vector of sizes"):
        survival(wrong)

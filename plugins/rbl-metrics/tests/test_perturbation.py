"""Sizes of perturbations: censored statistics, size-free distances, curves, and similarity of images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbl_metrics.curves import AreaUnderCurve, HalfAccuracyRadius, accuracy_perturbation_curve
from rbl_metrics.perturbation import (
    Evenness,
    MeanPerturbation,
    MedianPerturbation,
    NormalisedDistance,
    PerturbationQuantile,
    SignalToNoise,
    kaplan_meier,
    rank_sums,
)
from rbl_metrics.similarity import psnr, ssim
from robustbench_lite import Threat, UsageError
from robustbench_lite.curves import robust_curve, survival

INF = math.inf
LINF = Threat.parse("linf:0.1")


def test_median_is_over_correct_examples_and_censored(make_cell):
    cell = make_cell([0.3, 0.1, 0.2, INF, INF], correct=[True, True, True, True, False], threat="linf")
    found = MedianPerturbation()(cell, LINF)
    assert (found.value, found.n) == (0.2, 4)
    assert found.low >= 0.1
    assert found.high == INF
    assert MedianPerturbation()(make_cell([0.1, INF, INF], threat="linf"), LINF).value == INF
    zeros = MedianPerturbation(errors="zero")(cell, LINF)
    assert (zeros.value, zeros.n) == (0.2, 5)


def test_median_without_correct_examples_is_nan(make_cell):
    found = MedianPerturbation()(make_cell([INF], correct=[False], threat="linf"), LINF)
    assert math.isnan(found.value)
    assert found.n == 0


def test_median_interval_narrows_around_a_known_median(make_cell):
    sizes = np.random.default_rng(0).uniform(0, 1, size=4001)
    found = MedianPerturbation()(make_cell(list(sizes), threat="l2"), Threat.parse("l2"))
    assert 0.45 < found.low < found.value < found.high < 0.55


def test_quantiles_and_means_under_censoring(make_cell):
    cell = make_cell([0.1, 0.2, 0.3, INF, INF], correct=[True] * 4 + [False], threat="linf")
    values = [PerturbationQuantile(q=q)(cell, LINF).value for q in (0.1, 0.25, 0.5, 0.75, 0.9)]
    assert values == [0.1, 0.1, 0.2, 0.3, INF]
    assert MeanPerturbation(cap=0.4)(cell, LINF).value == pytest.approx(0.25)
    assert MeanPerturbation()(cell, LINF).value == pytest.approx(0.1)
    assert MeanPerturbation(of="beaten")(cell, LINF).value == pytest.approx(0.2)
    assert MeanPerturbation(of="beaten", errors="zero")(cell, LINF).value == pytest.approx(0.15)
    with pytest.raises(UsageError, match="needs a cap"):
        MeanPerturbation()(cell, Threat.parse("linf"))


@pytest.mark.parametrize("metric", [MedianPerturbation, PerturbationQuantile, MeanPerturbation])
def test_nothing_stored_is_no_number(make_cell, metric):
    with pytest.raises(UsageError, match="no examples are stored"):
        metric()(make_cell([]), LINF)


def test_kaplan_meier_by_hand():
    """Found at 1 and 3; one is censored at 2, so that at 3 one of two at risk falls: 3/4, then 3/8."""
    curve = kaplan_meier([1.0, INF, 3.0, INF], [5.0, 2.0, 5.0, 5.0])
    assert curve.at([0.0, 1.0, 2.5, 3.0, 5.0]) == pytest.approx([1.0, 0.75, 0.75, 0.375, 0.375])
    assert (curve.low <= curve.y).all()
    assert (curve.y <= curve.high).all()


@given(st.lists(st.floats(0.01, 3) | st.just(0.0) | st.just(INF), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_kaplan_meier_without_censoring_is_the_survival_curve(sizes):
    plain, found = survival(sizes), kaplan_meier(sizes, [INF] * len(sizes))
    at = [0.0, 0.005, *(s for s in sizes if s < INF), 10.0]
    assert found.at(at) == pytest.approx(plain.at(at))


def test_kaplan_meier_recovers_what_different_caps_hide():
    generator = np.random.default_rng(0)
    truth, caps = generator.exponential(size=4000), generator.uniform(0.2, 3, size=4000)
    curve = kaplan_meier(np.where(truth <= caps, truth, INF), caps)
    assert curve.at([0.5, 1.0, 2.0]) == pytest.approx(np.exp([-0.5, -1.0, -2.0]), abs=0.03)


@pytest.mark.parametrize("wrong", [([1.0], [1.0, 2.0]), ([], []), ([math.nan], [1.0])])
def test_kaplan_meier_checks_its_input(wrong):
    with pytest.raises(ValueError, match="two vectors"):
        kaplan_meier(*wrong)


def of_change(make_cell, change: np.ndarray, entropy: float):
    """A cell of one example (3, 8, 8) with this change, as the judge stores it."""
    return make_cell(
        [float(np.abs(change).max())],
        threat="linf",
        l2=[float(np.sqrt((change**2).sum()))],
        l1=[float(np.abs(change).sum())],
        l0=[int((change != 0).any(0).sum())],
        entropy=[entropy],
        values=[change.size],
        pixels=[64],
    )


def test_known_normalised_distances(make_cell):
    """R = 192: .1 everywhere, and half of the entries."""
    everywhere, half = np.full((3, 8, 8), 0.1), np.zeros((3, 8, 8))
    half[:, ::2] = 0.1
    first, second = of_change(make_cell, everywhere, 1.0), of_change(make_cell, half, 0.868163)
    threat = Threat.parse("linf")
    assert [NormalisedDistance(p=p)(first, threat).value for p in (2, 1, 0)] == pytest.approx([0.1, 0.1, 1.0])
    assert [NormalisedDistance(p=p)(second, threat).value for p in (2, 1, 0)] == pytest.approx([0.070711, 0.05, 0.5], abs=1e-6)
    assert Evenness()(second, threat).value == pytest.approx(0.868163)
    assert SignalToNoise()(first, threat).value == pytest.approx(20.0)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_normalised_distances_are_ordered_and_do_not_see_the_size(make_cell, seed):
    change = np.random.default_rng(seed).uniform(-0.3, 0.3, (3, 8, 8))
    cell, threat = of_change(make_cell, change, 0.5), Threat.parse("linf")
    one, two = (NormalisedDistance(p=p)(cell, threat).value for p in (1, 2))
    assert one <= two + 1e-12 <= float(np.abs(change).max()) + 1e-11
    several = np.repeat(change, 4, axis=2)
    larger = of_change(make_cell, several, 0.5)
    larger.arrays["pixels"] = np.array([256])
    assert NormalisedDistance(p=2)(larger, threat).value == pytest.approx(two)
    assert NormalisedDistance(p=1)(larger, threat).value == pytest.approx(one)


def test_size_free_distances_need_something_beaten_and_stored(make_cell):
    cell = make_cell([INF], l2=[0.0], values=[4], pixels=[4], entropy=[0.0])
    for metric in (NormalisedDistance(), Evenness(), SignalToNoise()):
        assert math.isnan(metric(cell, LINF).value)
        with pytest.raises(UsageError, match="of an earlier version"):
            metric(make_cell([0.1]), LINF)


def test_aggregate_ranks():
    """Three defenses by linf (larger is better) and AMUD (smaller is better); the second shares a rank."""
    assert rank_sums([[0.3, 0.5], [0.2, 0.6], [0.2, 0.9]], [False, True]).tolist() == [2.0, 4.5, 5.5]


def test_auac_is_exact_for_minimal_norms_and_a_trapezoid_for_budgets(make_cell):
    minimal = make_cell([0.02, 0.05, 0.2, INF, INF], correct=[True] * 4 + [False], threat="linf")
    assert AreaUnderCurve()([minimal], LINF).value == pytest.approx((0.2 + 0.5 + 1 + 1 + 0) / 5)
    assert AreaUnderCurve(upto=0.2)([minimal], LINF).value == pytest.approx((0.1 + 0.25 + 1 + 1) / 5)
    budgets = [make_cell([0.1, 0.1, INF, INF]), make_cell([INF, 0.05, INF, INF], threat="linf:0.05", attack="b")]
    assert AreaUnderCurve()(budgets, LINF).value == pytest.approx((1 + 0.75) / 4 + (0.75 + 0.5) / 4)
    for cells in ([minimal], budgets):
        found = AreaUnderCurve()(cells, LINF)
        assert found.low < found.value < found.high
    with pytest.raises(UsageError, match="needs accuracies"):
        AreaUnderCurve(upto=0.2)(budgets, LINF)
    with pytest.raises(UsageError, match="says nothing"):
        AreaUnderCurve()(budgets, Threat.parse("linf:0.3"))
    with pytest.raises(UsageError, match="is of norm l2"):
        AreaUnderCurve()(budgets, Threat.parse("l2:1"))


def test_half_accuracy_radius(make_cell):
    minimal = make_cell([0.02, 0.05, 0.2, INF, INF], correct=[True] * 4 + [False], threat="linf")
    assert HalfAccuracyRadius()([minimal], LINF).value == 0.05
    assert HalfAccuracyRadius()([minimal], LINF).low == 0.0
    assert HalfAccuracyRadius()([minimal], LINF).high == INF
    assert HalfAccuracyRadius(of="clean")([minimal], LINF).value == 0.05
    assert HalfAccuracyRadius()([make_cell([0.1, INF, INF], threat="linf")], LINF).value == INF
    assert math.isnan(HalfAccuracyRadius()([make_cell([0.1, INF, INF])], LINF).value)


def test_realised_magnitudes_make_attacks_comparable(make_cell):
    """An l2 attack's points lie on the linf axis at their linf size; one minimal attack gives its own robust curve."""
    minimal = make_cell([0.1, 0.4, INF, INF], correct=[True] * 3 + [False], threat="linf", linf=[0.1, 0.4, 0, 0])
    other = make_cell(
        [1.0, 0.5, 0.7, INF], correct=[True] * 3 + [False], threat="l2:1", linf=[0.2, 0.3, 0.5, 0], l2=[1.0, 0.5, 0.7, 0]
    )
    alone, joint = accuracy_perturbation_curve([minimal], "linf"), accuracy_perturbation_curve([other, minimal], "linf")
    exact = robust_curve([minimal], "linf")
    assert np.array_equal(alone.x, exact.x)
    assert np.array_equal(alone.y, exact.y)
    assert joint.at([0.0, 0.1, 0.3, 0.5]).tolist() == [0.75, 0.5, 0.25, 0.0]
    assert (np.diff(joint.y) < 0).all()
    other.arrays["values"] = np.full(4, 25)
    assert accuracy_perturbation_curve([other], "rms").x == pytest.approx([0.0, 0.1, 0.14, 0.2])
    wide = accuracy_perturbation_curve([minimal], "linf", band="dkw")
    assert (wide.high - wide.low >= alone.high - alone.low - 1e-12).all()


def direct_ssim(a: np.ndarray, b: np.ndarray, side: int) -> float:
    """The definition, position by position, of one channel."""
    line = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    found = []
    for i in range(a.shape[0] - side + 1):
        for j in range(a.shape[1] - side + 1):
            p, q = a[i : i + side, j : j + side], b[i : i + side, j : j + side]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            c1, c2 = 0.01**2, 0.03**2
            found.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("shape", "side"), [((1, 16, 13), 11), ((3, 12, 12), 11), ((1, 8, 8), 7), ((1, 5, 9), 5), ((2, 1, 1), 1)]
)
def test_ssim_is_its_definition(shape, side):
    generator = np.random.default_rng(0)
    x = generator.uniform(size=(2, *shape))
    y = np.clip(x + generator.normal(scale=0.1, size=x.shape), 0, 1)
    expected = [np.mean([direct_ssim(a, b, side) for a, b in zip(i, j, strict=True)]) for i, j in zip(x, y, strict=True)]
    assert ssim(x, y) == pytest.approx(expected, abs=1e-9)
    assert ssim(y, x) == pytest.approx(ssim(x, y))
    assert ssim(x, x) == pytest.approx(1.0)
    assert (np.abs(ssim(x, 1 - x)) <= 1).all()


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    generator = np.random.default_rng(1)
    x = generator.uniform(size=(1, 1, 40, 36))
    y = np.clip(x + generator.normal(scale=0.2, size=x.shape), 0, 1)
    peer = metrics.structural_similarity(
        x[0, 0], y[0, 0], data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(x, y)[0] == pytest.approx(peer, abs=1e-6)


def test_psnr_of_a_constant_shift():
    x = np.full((2, 3, 4, 4), 0.4)
    assert psnr(x, x + 0.1) == pytest.approx(20.0)
    assert psnr(x, x).tolist() == [INF, INF]
    for wrong in ((x, x[:1]), (x[0], x[0][:1])):
        with pytest.raises(ValueError, match="shape"):
            psnr(*wrong)
    with pytest.raises(ValueError, match="of one shape"):
        ssim(x[0], x[0])

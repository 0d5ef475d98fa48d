"""Calibration, proper scores and detection: vectors, peers (scikit-learn) and analytic cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from rbl_metrics.calibration import (
    BrierScore,
    CalibrationError,
    NegativeLogLikelihood,
    brier_parts,
    classwise_error,
    probabilities,
    reliability,
    squared_errors,
    surprises,
    temperature,
)
from rbl_metrics.detection import (
    AdversarialDetection,
    UndetectedError,
    accuracy_at_fitted_threshold,
    auroc,
    detection,
    scores,
)
from robustbench_lite import Threat, UsageError, import_torchvision

INF = math.inf
LINF = Threat.parse("linf:0.1")
CONFIDENCE = [0.95, 0.95, 0.85, 0.75, 0.75, 0.65, 0.55, 0.55]
RIGHT = [1, 1, 1, 1, 0, 0, 1, 0]


def drawn(n: int, classes: int = 5, scale: float = 1.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their own probabilities: perfectly calibrated."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=scale, size=(n, classes))
    cumulative = probabilities(logits).cumsum(1)
    return logits, (generator.random(n)[:, None] > cumulative).sum(1).clip(max=classes - 1)


def test_known_calibration_errors():
    found = reliability(CONFIDENCE, RIGHT, 10)
    assert found.expected == pytest.approx(0.1875)
    assert found.maximum == pytest.approx(0.65)
    assert found.signed == pytest.approx(np.mean(CONFIDENCE) - np.mean(RIGHT))


def test_bins_are_closed_on_the_right():
    counts = reliability([0.0, 0.1, 0.7, 0.70001, 1.0], [1] * 5, 10).counts
    assert counts.tolist() == [2, 0, 0, 0, 0, 0, 1, 1, 0, 1]


def test_constant_confidence():
    found = reliability(np.full(10, 0.9), [1] * 6 + [0] * 4)
    assert found.expected == found.signed == pytest.approx(0.3)


def test_bins_of_equal_mass():
    found = reliability(np.linspace(0.5, 0.99, 45), np.ones(45), 15, equal_mass=True)
    assert found.counts.tolist() == [3] * 15


def test_perfectly_calibrated():
    logits, y = drawn(100_000)
    table = probabilities(logits)
    right = table.argmax(1) == y
    assert reliability(table.max(1), right).expected < 0.01
    assert reliability(table.max(1), right, equal_mass=True).expected < 0.01
    assert classwise_error(table, y) < 0.01


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_is_recovered_and_keeps_the_answers(factor):
    logits, y = drawn(20_000)
    assert temperature(logits * factor, y) == pytest.approx(factor, rel=0.03)
    assert np.array_equal((logits / factor).argmax(1), logits.argmax(1))


def test_known_scores():
    table, y = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]), [0, 1, 0]
    assert squared_errors(table, y).mean() == pytest.approx(0.313333, abs=1e-6)
    assert surprises(np.log(table), y).mean() == pytest.approx(0.594597, abs=1e-6)
    uniform = np.zeros((4, 5))
    assert surprises(uniform, [0, 1, 2, 3]) == pytest.approx(math.log(5))
    assert squared_errors(probabilities(uniform), [0, 1, 2, 3]) == pytest.approx(0.8)
    assert surprises([[2000.0, 0.0]], [1]) == pytest.approx(2000.0)


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_scores_are_those_of_scikit_learn(seed):
    logits, y = drawn(60, 3, seed=seed)
    table = probabilities(logits)
    assert surprises(logits, y).mean() == pytest.approx(log_loss(y, table, labels=[0, 1, 2]), rel=1e-9)
    two, half = probabilities(logits[:, :2]), (y > 0).astype(int)
    assert squared_errors(two, half).mean() == pytest.approx(2 * brier_score_loss(half, two[:, 1], pos_label=1), rel=1e-9)


@given(st.integers(0, 1000), st.integers(1, 20))
@settings(deadline=None, max_examples=25)
def test_brier_parts_add_up_on_binned_probabilities(seed, bins):
    logits, y = drawn(80, 3, seed=seed)
    table = probabilities(logits)
    binned = np.empty_like(table)
    edges = np.linspace(0, 1, bins + 1)
    for k in range(3):
        place = np.clip(np.searchsorted(edges, table[:, k], side="left") - 1, 0, bins - 1)
        for b in np.unique(place):
            binned[place == b, k] = table[place == b, k].mean()
    reliable, resolved, uncertain = brier_parts(table, y, bins)
    assert reliable - resolved + uncertain == pytest.approx(squared_errors(binned, y).mean(), abs=1e-10)
    assert min(reliable, resolved, uncertain) >= 0


def stored(make_cell, **more):
    """Four examples of two classes: two beaten, one of them sure of the wrong class, one clean error."""
    clean = np.float32([[3, 0], [1, 0], [0, 2], [2, 0]])
    adv = np.float32([[0, 4], [1, 0], [1, 0], [2, 0]])
    return make_cell(
        [0.05, INF, 0.1, INF],
        correct=[True, True, True, False],
        y=[0, 0, 1, 1],
        logits_clean=clean,
        logits_adv=adv,
        **more,
    )


def test_calibration_of_cells(make_cell):
    cell = stored(make_cell)
    clean = probabilities(cell.arrays["logits_clean"]).max(1)
    found = CalibrationError(kind="signed")(cell, LINF)
    assert found.value == pytest.approx(clean.mean() - 0.75)
    assert found.low <= found.value <= found.high
    attacked = probabilities(cell.arrays["logits_adv"]).max(1)
    assert CalibrationError(kind="signed", on="adversarial")(cell, LINF).value == pytest.approx(attacked.mean() - 0.25)
    closer = np.array([attacked[0], *clean[1:]])
    smaller = CalibrationError(kind="signed", on="adversarial")(cell, Threat.parse("linf:0.05"))
    assert smaller.value == pytest.approx(closer.mean() - 0.5)
    assert NegativeLogLikelihood()(cell, LINF).value == pytest.approx(
        surprises(cell.arrays["logits_clean"], [0, 0, 1, 1]).mean()
    )
    assert BrierScore(on="adversarial")(cell, LINF).value == pytest.approx(
        squared_errors(probabilities(cell.arrays["logits_adv"]), [0, 0, 1, 1]).mean()
    )


def test_very_many_classes_are_calibrated_by_what_is_kept(make_cell):
    cell = make_cell([0.1, INF], y=[0, 1], confidence_clean=[0.9, 0.5], confidence_adv=[0.7, 0.5])
    assert CalibrationError(kind="signed")(cell, LINF).value == pytest.approx(0.7 - 1)
    assert CalibrationError(kind="signed", on="adversarial")(cell, LINF).value == pytest.approx(0.6 - 0.5)
    for metric in (CalibrationError(kind="classwise"), CalibrationError(scaled=True), NegativeLogLikelihood(), BrierScore()):
        with pytest.raises(UsageError, match="has no logits_clean"):
            metric(cell, LINF)


def test_scaled_error_uses_other_examples_than_the_fit(make_cell):
    logits, y = drawn(4000)
    cell = make_cell([INF] * 4000, correct=logits.argmax(1) == y, y=y, logits_clean=logits * 3)
    raw = CalibrationError(kind="signed")(cell, LINF).value
    scaled = CalibrationError(kind="signed", scaled=True)(cell, LINF)
    assert raw > 0.15
    assert abs(scaled.value) < 0.03
    assert scaled.n == 2000


def test_known_detection():
    found = detection([0.9, 0.8, 0.7, 0.6, 0.5], [0.65, 0.5, 0.4, 0.3, 0.2])
    assert (found.auroc, found.threshold, found.fpr95) == pytest.approx((0.90, 0.5, 0.4))
    # at .6: one of five missed, one of five passes; at .7: two missed, none passes
    assert found.error == pytest.approx(0.2)


def test_detection_at_the_extremes():
    assert detection([1, 2, 3], [1, 2, 3]).auroc == 0.5
    apart = detection([2, 3], [0, 1])
    assert (apart.auroc, apart.fpr95, apart.error, apart.aupr_normal, apart.aupr_other) == (1, 0, 0, 1, 1)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.lists(st.integers(0, 6), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_auroc_is_that_of_scikit_learn_and_sees_ranks_only(normal, other):
    found = auroc(normal, other)
    labels = [1] * len(normal) + [0] * len(other)
    assert found == pytest.approx(roc_auc_score(labels, normal + other), abs=1e-12)
    assert auroc(np.exp(normal), np.exp(other)) == pytest.approx(found, abs=1e-12)
    assert auroc(other, normal) == pytest.approx(1 - found, abs=1e-12)


def test_scores_of_logits():
    z = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    p = probabilities(z)
    assert scores(z, "msp") == pytest.approx(p.max(1))
    assert scores(z, "entropy") == pytest.approx([(p[0] * np.log(p[0])).sum(), -math.log(3)])
    assert scores(z, "energy") == pytest.approx(np.log(np.exp(z).sum(1)))
    assert scores(z, "max-logit").tolist() == [2.0, 0.0]
    assert scores(z, "margin").tolist() == [2.0, 0.0]


def test_adversarial_detection_of_cells(make_cell):
    cell = stored(make_cell)
    # correct clean images: margins 3, 1, 2; accepted points: 4 and 1
    found = AdversarialDetection(score="margin")(cell, LINF)
    assert found.value == pytest.approx((0 + 2.5) / 6)
    assert found.n == 5
    assert AdversarialDetection(score="margin")(cell, Threat.parse("linf:0.05")).value == 0.0
    assert math.isnan(AdversarialDetection()(cell, Threat.parse("linf:0.01")).value)


def test_a_random_detector_is_no_better_than_a_coin():
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 5000))
    assert auroc(a, b) == pytest.approx(0.5, abs=0.02)
    assert accuracy_at_fitted_threshold(a, b, np.arange(5000) % 2 == 0) == pytest.approx(0.5, abs=0.02)
    assert accuracy_at_fitted_threshold(a + 2, b, np.arange(5000) % 2 == 0) == 1.0


def test_errors_that_pass_a_detector(make_cell):
    # normal margins 1, 2, 3: with a third of false alarms all above 5/3 pass; under attack margins are 4, 1, 1, 2
    cell = stored(make_cell)
    found = UndetectedError(score="margin", false_alarms=1 / 3)(cell, LINF)
    assert found.value == pytest.approx(0.5)  # the sure wrong one and the clean error
    assert UndetectedError(score="margin", false_alarms=0.99)(cell, LINF).value == pytest.approx(0.25)


def test_calibration_errors_are_those_of_torchmetrics():
    """Bins are closed on the other side there, which matters to no continuous confidence."""
    import_torchvision()  # torchmetrics imports it, too
    peer = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    logits, y = drawn(3000, 4)
    table = probabilities(logits * 1.7)
    found = reliability(table.max(1), table.argmax(1) == y, 15)
    given = torch.tensor(table), torch.tensor(y)
    for norm, ours in (("l1", found.expected), ("max", found.maximum)):
        theirs = peer.multiclass_calibration_error(*given, num_classes=4, n_bins=15, norm=norm)
        assert ours == pytest.approx(float(theirs), abs=1e-6)

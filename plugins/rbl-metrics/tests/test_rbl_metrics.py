from __future__ import annotations

import importlib
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rbl_metrics
from rbl_metrics.accuracy import CleanAccuracy, RobustAccuracy, WorstCase
from rbl_metrics.cost import Backwards, Forwards, Seconds
from rbl_metrics.perturbation import MedianPerturbation
from robustbench_lite import MetricValue, Threat, UsageError

INF = math.inf
LINF = Threat.parse("linf:0.1")
CELL_METRICS = [CleanAccuracy, RobustAccuracy, MedianPerturbation, Forwards, Backwards]


def test_specs_are_sound_and_their_factories_exist():
    specs = list(rbl_metrics.rbl_metrics())
    assert len({s.name for s in specs}) == len(specs) == 7
    for spec in specs:
        assert spec.problems() == []
        assert spec.summary
        assert spec.unit
        module, _, name = spec.factory.partition(":")
        assert callable(getattr(importlib.import_module(module), name)())


def test_entry_module_is_light():
    code = "import rbl_metrics, sys; list(rbl_metrics.rbl_metrics()); print({'torch', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_metrics_import_no_torch():
    code = "import rbl_metrics.accuracy, rbl_metrics.cost, rbl_metrics.perturbation, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_accuracies_count_over_all_examples(make_cell):
    cell = make_cell([INF, 0.1, INF, INF], correct=[True, True, True, False])
    clean, robust = CleanAccuracy()(cell, LINF), RobustAccuracy()(cell, LINF)
    assert (clean.value, clean.n) == (0.75, 4)
    assert (robust.value, robust.n) == (0.5, 4)
    assert (robust.low, robust.high) == pytest.approx((0.150039, 0.849961), abs=1e-6)


def test_a_minimal_norm_cell_answers_for_every_radius(make_cell):
    cell = make_cell([0.05, 0.15, 0.25, INF], threat="linf")
    radii = ["linf:0.01", "linf:0.05", "linf:0.1", "linf:0.2", "linf:1"]
    assert [RobustAccuracy()(cell, Threat.parse(t)).value for t in radii] == [1.0, 0.75, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("asked", ["linf:0.2", "l2:0.1", "union:linf:0.1+l2:1"])
def test_robust_accuracy_refuses_what_the_attack_did_not_search(make_cell, asked):
    with pytest.raises(UsageError, match="says nothing about"):
        RobustAccuracy()(make_cell([INF]), Threat.parse(asked))
    with pytest.raises(UsageError, match="says nothing about"):
        WorstCase()([make_cell([INF])], Threat.parse(asked))


def test_a_larger_radius_was_searched_too(make_cell):
    cell = make_cell([0.05, 0.1, INF])
    assert RobustAccuracy()(cell, Threat.parse("linf:0.05")).value == pytest.approx(2 / 3)


def test_attacks_that_break_disjoint_halves_leave_nothing(make_cell):
    a, b = make_cell([0.1, 0.1, INF, INF], attack="a"), make_cell([INF, INF, 0.1, 0.1], attack="b")
    assert RobustAccuracy()(a, LINF).value == RobustAccuracy()(b, LINF).value == 0.5
    worst = WorstCase()([a, b], LINF)
    assert (worst.value, worst.low, worst.n) == (0.0, 0.0, 4)


@given(st.lists(st.tuples(st.booleans(), st.lists(st.booleans(), min_size=3, max_size=3)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=50)
def test_worst_case_is_below_every_attack_and_above_what_they_break_together(make_cell, rows):
    correct = [c for c, _ in rows]
    cells = [make_cell([0.1 if c and b[i] else INF for c, b in rows], correct=correct, attack=str(i)) for i in range(3)]
    worst = WorstCase()(cells, LINF)
    accuracies = [RobustAccuracy()(cell, LINF).value for cell in cells]
    clean = CleanAccuracy()(cells[0], LINF).value
    assert clean - sum(clean - a for a in accuracies) - 1e-12 <= worst.value <= min(accuracies) <= clean
    assert worst == WorstCase()(cells[::-1], LINF)
    assert worst.low <= worst.value <= worst.high


def test_worst_case_refuses_different_examples(make_cell):
    for index in ([1, 0], [0, 2]):
        with pytest.raises(UsageError, match="b and d under a were judged on different examples"):
            WorstCase()([make_cell([INF, INF]), make_cell([INF, INF], index=index, attack="b")], LINF)
    with pytest.raises(UsageError, match="different examples"):
        WorstCase()([make_cell([INF, INF]), make_cell([INF])], LINF)


def test_worst_case_needs_an_attack():
    with pytest.raises(UsageError, match="at least one attack"):
        WorstCase()([], LINF)


@pytest.mark.parametrize("metric", CELL_METRICS)
def test_an_empty_cell_has_no_number(make_cell, metric):
    with pytest.raises(UsageError, match="no examples are stored for d under a"):
        metric()(make_cell([]), LINF)


def test_median_is_over_correct_examples_and_censored(make_cell):
    cell = make_cell([0.3, 0.1, 0.2, INF, INF], correct=[True, True, True, True, False], threat="linf")
    found = MedianPerturbation()(cell, LINF)
    assert (found.value, found.n) == (0.2, 4)
    assert found.low >= 0.1
    assert found.high == INF
    assert MedianPerturbation()(make_cell([0.1, INF, INF], threat="linf"), LINF).value == INF


def test_median_without_correct_examples_is_nan(make_cell):
    found = MedianPerturbation()(make_cell([INF], correct=[False], threat="linf"), LINF)
    assert math.isnan(found.value)
    assert found.n == 0


def test_median_interval_narrows_around_a_known_median(make_cell):
    sizes = np.random.default_rng(0).uniform(0, 1, size=4001)
    found = MedianPerturbation()(make_cell(list(sizes), threat="l2"), Threat.parse("l2"))
    assert 0.45 < found.low < found.value < found.high < 0.55


def test_costs(make_cell):
    cell = make_cell([INF, 0.1, INF], forwards=[11, 4, 0], backwards=[10, 2, 0], seconds=2.5)
    assert Forwards()(cell, LINF) == MetricValue(value=5.0, n=3)
    assert Backwards()(cell, LINF) == MetricValue(value=4.0, n=3)
    assert Seconds()(cell, LINF) == MetricValue(value=2.5, n=3)

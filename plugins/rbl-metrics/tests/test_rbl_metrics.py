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
from rbl_metrics.accuracy import CleanAccuracy, FoolingRate, RobustAccuracy, SuccessRate, WorstCase, predictions
from rbl_metrics.classes import WorstClass, class_accuracies, confusion
from rbl_metrics.cost import Backwards, Forwards, Queries, Seconds, success_over_queries
from robustbench_lite import MetricValue, Threat, UsageError

INF = math.inf
LINF = Threat.parse("linf:0.1")
CELL_METRICS = [CleanAccuracy, RobustAccuracy, SuccessRate, FoolingRate, WorstClass, Forwards, Backwards, Queries]


def test_specs_are_sound_and_their_factories_exist():
    specs = list(rbl_metrics.rbl_metrics())
    assert len({s.name for s in specs}) == len(specs)
    for spec in specs:
        assert spec.problems() == []
        assert spec.summary
        module, _, name = spec.factory.partition(":")
        assert callable(getattr(importlib.import_module(module), name)())


def test_entry_module_is_light():
    code = "import rbl_metrics, sys; list(rbl_metrics.rbl_metrics()); print({'torch', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_metrics_import_no_torch():
    modules = {spec.factory.partition(":")[0] for spec in rbl_metrics.rbl_metrics() if spec.scope != "model"}
    code = f"import {', '.join(sorted(modules))}, sys; print('torch' in sys.modules)"
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
    with pytest.raises(UsageError, match="no results were given"):
        WorstCase()([], LINF)


@pytest.mark.parametrize("metric", CELL_METRICS)
def test_an_empty_cell_has_no_number(make_cell, metric):
    with pytest.raises(UsageError, match="no examples are stored for d under a"):
        metric()(make_cell([]), LINF)


def test_costs(make_cell):
    cell = make_cell([INF, 0.1, INF], forwards=[11, 4, 0], backwards=[10, 2, 0], seconds=2.5)
    assert Forwards()(cell, LINF) == MetricValue(value=5.0, n=3)
    assert Backwards()(cell, LINF) == MetricValue(value=4.0, n=3)
    assert Seconds()(cell, LINF) == MetricValue(value=2.5, n=3)


def test_median_cost(make_cell):
    cell = make_cell([INF, 0.1, INF], forwards=[11, 4, 0], backwards=[10, 2, 0])
    assert Forwards(statistic="median")(cell, LINF).value == 4.0
    assert Backwards(statistic="median")(cell, LINF).value == 2.0


def test_queries_count_where_the_attack_succeeded(make_cell):
    cell = make_cell([0.1, 0.05, INF, 0.1, INF], correct=[True, True, True, True, False], queries=[30, 10, 900, 20, 0])
    assert Queries()(cell, LINF).value == 20
    assert Queries(statistic="mean")(cell, LINF).value == 20
    assert Queries()(cell, Threat.parse("linf:0.05")).value == 10
    curve = success_over_queries(cell, LINF)
    assert curve.at([0, 9, 10, 25, 30, 900]).tolist() == [0, 0, 0.25, 0.5, 0.75, 0.75]
    assert math.isnan(Queries()(make_cell([INF], queries=[5]), LINF).value)


def test_top_k_and_ties(make_cell):
    """Of equal logits the earlier class comes first, as in torch.argmax."""
    logits = [[1.0, 3.0, 2.0], [2.0, 2.0, 1.0], [2.0, 2.0, 1.0], [0.0, 0.0, 0.0]]
    cell = make_cell([INF] * 4, correct=[False, True, False, False], y=[2, 0, 1, 2], logits_clean=np.float32(logits))
    assert [CleanAccuracy(top=k)(cell, LINF).value for k in (1, 2, 3)] == [0.25, 0.75, 1.0]
    many = make_cell([INF] * 2, y=[7, 3], top5_clean=[[9, 8, 7, 6, 5]] * 2)
    assert [CleanAccuracy(top=k)(many, LINF).value for k in (2, 3, 5)] == [0.0, 0.5, 0.5]
    with pytest.raises(UsageError, match="has no logits_clean"):
        CleanAccuracy(top=6)(many, LINF)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None, max_examples=60)
def test_success_and_robustness_are_two_sides(make_cell, rows):
    correct = [c for c, _ in rows]
    y = np.zeros(len(rows), dtype=int)
    pred = np.where(correct, 0, 1)
    adv = np.where([c and b for c, b in rows], 2, pred)
    sizes = [0.1 if c and b else INF for c, b in rows]
    cell = make_cell(sizes, correct=correct, y=y, clean_pred=pred, adv_pred=adv)
    clean, robust = CleanAccuracy()(cell, LINF).value, RobustAccuracy()(cell, LINF).value
    assert SuccessRate(of="all")(cell, LINF).value == pytest.approx(1 - robust)
    assert FoolingRate()(cell, LINF).value == pytest.approx(clean - robust)
    rate = SuccessRate()(cell, LINF).value
    if clean:
        assert robust == pytest.approx(clean * (1 - rate), abs=1e-12)
        assert RobustAccuracy()(cell, Threat("linf", 0.0)).value == clean
    else:
        assert math.isnan(rate)
    table = confusion(cell, LINF)
    assert table.sum(1).tolist() == np.bincount(y, minlength=len(table)).tolist()
    assert np.trace(table) == round(robust * len(rows))
    assert np.trace(confusion(cell)) == sum(correct)


def test_class_by_class(make_cell):
    """Class 1 loses both of its examples, class 0 one of two."""
    cell = make_cell(
        [INF, 0.1, 0.05, 0.1],
        y=[0, 0, 1, 1],
        clean_pred=[0, 0, 1, 1],
        adv_pred=[0, 1, 2, 0],
        logits_clean=np.zeros((4, 3), dtype=np.float32),
    )
    assert {k: v.value for k, v in class_accuracies(cell, LINF).items()} == {0: 0.5, 1: 0.0}
    assert {k: v.value for k, v in class_accuracies(cell).items()} == {0: 1.0, 1: 1.0}
    assert WorstClass()(cell, LINF) == MetricValue(value=0.0, n=4)
    assert confusion(cell, LINF).tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert predictions(cell, Threat.parse("linf:0.05")).tolist() == [0, 0, 2, 1]
    assert confusion(cell).tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 0]]

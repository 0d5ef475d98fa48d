"""What attacks do together: contributions to the worst case, unions of threat models, transfer, optimality, corruptions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbl_metrics.accuracy import WorstCase
from rbl_metrics.corruption import (
    AverageCase,
    corruption_error,
    corruption_errors,
    mean_corruption_error,
    relative_corruption_error,
)
from rbl_metrics.ensembles import UnionAccuracy, first_successes, marginal_contributions, pair_gains, union_accuracy
from rbl_metrics.optimality import attack_optimality, global_optimality, local_optimality
from rbl_metrics.transfer import transfer_matrix
from robustbench_lite import Threat, UsageError

INF = math.inf
LINF = Threat.parse("linf:0.1")
UNION = Threat.parse("union:linf:0.1+l2:1")


def test_contributions_of_disjoint_halves_and_of_a_copy(make_cell):
    a, b = make_cell([0.1, 0.1, INF, INF], attack="a"), make_cell([INF, INF, 0.1, 0.1], attack="b")
    assert marginal_contributions([a, b], LINF).tolist() == [0.5, 0.5]
    assert first_successes([b, a], LINF).tolist() == [0.5, 0.5]
    assert pair_gains([a, b], LINF).tolist() == [[0.0, 0.5], [0.5, 0.0]]
    copy = make_cell([0.1, 0.1, INF, INF], attack="copy")
    assert marginal_contributions([a, copy, b], LINF).tolist() == [0.0, 0.0, 0.5]
    assert first_successes([a, copy, b], LINF).tolist() == [0.5, 0.0, 0.5]


@given(st.lists(st.tuples(st.booleans(), st.lists(st.booleans(), min_size=3, max_size=3)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=50)
def test_contributions_are_differences_of_worst_cases(make_cell, rows):
    correct = [c for c, _ in rows]
    cells = [make_cell([0.1 if c and b[i] else INF for c, b in rows], correct=correct, attack=str(i)) for i in range(3)]
    worst = WorstCase()(cells, LINF).value
    for i, found in enumerate(marginal_contributions(cells, LINF)):
        assert found == pytest.approx(WorstCase()(cells[:i] + cells[i + 1 :], LINF).value - worst)
    assert np.mean(correct) - first_successes(cells, LINF).sum() == pytest.approx(worst)
    gains = pair_gains(cells, LINF)
    for i in range(3):
        for j in range(3):
            pair = WorstCase()([cells[i], cells[j]], LINF).value
            assert gains[i, j] == pytest.approx(WorstCase()([cells[i]], LINF).value - pair)


def test_union_takes_the_worst_over_norms(make_cell):
    linf = make_cell([0.1, INF, INF, INF], correct=[True, True, True, False], threat="linf:0.1", attack="a")
    l2 = make_cell([INF, 1.0, INF, INF], correct=[True, True, True, False], threat="l2:1", attack="b")
    found = union_accuracy([linf, l2], UNION)
    assert {name: value.value for name, value in found.parts.items()} == {"linf:0.1": 0.5, "l2:1": 0.5}
    assert found.union.value == 0.25
    assert found.imbalance == 0.0
    assert UnionAccuracy()([linf, l2], UNION) == found.union
    assert UnionAccuracy()([linf], LINF).value == 0.5


def test_a_point_of_an_attack_on_the_union_counts_in_the_part_where_it_lies(make_cell):
    msd = make_cell([1.0, 0.9, INF], threat=str(UNION), linf=[0.3, 0.05, 0.0], l2=[1.0, 2.0, 0.0])
    found = union_accuracy([msd], UNION)
    assert {name: value.value for name, value in found.parts.items()} == pytest.approx({"linf:0.1": 2 / 3, "l2:1": 2 / 3})
    assert found.union.value == pytest.approx(1 / 3)


def test_what_no_union_can_be_made_of(make_cell):
    linf = make_cell([INF])
    with pytest.raises(UsageError, match="no attack searched l2:1"):
        union_accuracy([linf], UNION)
    with pytest.raises(UsageError, match="no union"):
        union_accuracy([linf], LINF)
    with pytest.raises(UsageError, match="says nothing about"):
        union_accuracy([linf, make_cell([INF], threat="l2:0.5")], UNION)


def transferred(make_cell, source: str, target: str, sizes: list[float], correct: list[bool] | None = None):
    spec = {} if source == target else {"surrogates": [{"label": source}]}
    return make_cell(sizes, defense=target, attack=f"from {source}", attack_spec=spec, correct=correct)


def test_transfer_matrix(make_cell):
    cells = [
        transferred(make_cell, "a", "a", [0.1, 0.1, 0.1, 0.1]),
        transferred(make_cell, "b", "b", [0.1, 0.1, INF, INF]),
        transferred(make_cell, "a", "b", [INF, 0.1, INF, INF]),
        transferred(make_cell, "b", "a", [0.1, 0.1, 0.1, INF], [True, True, True, False]),
    ]
    found = transfer_matrix(cells, LINF)
    assert (found.sources, found.targets) == (("a", "b"), ("a", "b"))
    assert found.success.tolist() == [[1.0, 0.25], [1.0, 0.5]]
    assert found.mean_transfer == pytest.approx(0.625)
    assert found.hardest_target == "b"
    assert found.transferability.tolist() == [[1.0, 0.25], [2.0, 1.0]]
    assert transfer_matrix(cells, LINF, where_source_fell=True).success.tolist() == [[1.0, 0.25], [1.0, 1.0]]


def test_one_model_twice_is_symmetric(make_cell):
    sizes = [0.1, INF, 0.1]
    cells = [transferred(make_cell, s, t, sizes) for s in "ab" for t in "ab"]
    found = transfer_matrix(cells, LINF).success
    assert np.array_equal(found, found.T)
    assert np.ptp(found) == 0


def test_what_no_transfer_matrix_can_be_made_of(make_cell):
    cell = transferred(make_cell, "a", "b", [INF])
    with pytest.raises(UsageError, match="both crafted on a"):
        transfer_matrix([cell, cell], LINF)
    with pytest.raises(UsageError, match="white-box result on a is missing"):
        transfer_matrix([cell], LINF, where_source_fell=True)
    several = make_cell([INF], attack_spec={"surrogates": [{"label": "a"}, {"label": "c"}]})
    with pytest.raises(UsageError, match="2 defenses at once"):
        transfer_matrix([several], LINF)
    white = transfer_matrix([transferred(make_cell, "a", "a", [INF])], LINF)
    assert math.isnan(white.mean_transfer)
    with pytest.raises(UsageError, match="crafted on another"):
        _ = white.hardest_target


def test_optimality_by_hand():
    """d* = (0, 1, 2, 3) against d = (0, 2, 2, 4): exact 2/3, and 1 by the trapezoid of the published evaluation."""
    table = [[0, 1, 2, 3], [0, 2, 2, 4], [0, INF, INF, INF]]
    assert local_optimality(table).local == pytest.approx([1.0, 2 / 3, 0.0])
    assert local_optimality(table, compat=True).local[1] == pytest.approx(1.0)
    assert local_optimality(table).radius == 3


@given(st.lists(st.lists(st.floats(0.01, 5) | st.just(INF), min_size=3, max_size=3), min_size=2, max_size=20))
@settings(deadline=None, max_examples=80)
def test_optimality_is_monotone_and_relative_to_the_best(rows):
    table = np.array(rows).T
    found = local_optimality(table)
    best = local_optimality(np.vstack([table, table.min(0)]))
    assert best.unbeaten == int(np.isinf(table).all(0).sum())
    if np.isnan(found.local).any():  # nothing was found, or all at one distance
        return
    assert best.local[-1] == pytest.approx(1.0)
    assert ((found.local >= -1e-9) & (found.local <= 1 + 1e-9)).all()
    stronger = np.vstack([table, table.min(0) * 0.5])
    assert (local_optimality(stronger).local[:3] <= found.local + 1e-9).all() or found.unbeaten


def test_optimality_of_cells(make_cell):
    a = make_cell([0.1, 0.2, INF], threat="linf", correct=[True, True, False], attack="a")
    b = make_cell([0.2, INF, INF], threat="linf", correct=[True, True, False], attack="b")
    found = attack_optimality([a, b])
    # radius .2: area .1 at best, .4/3 at most; b has .4/3
    assert found.local == pytest.approx([1.0, 0.0])
    assert global_optimality({"d": found.local, "e": [0.5, 0.5]}) == pytest.approx([0.75, 0.25])
    with pytest.raises(UsageError, match="minimal-norm"):
        attack_optimality([a, make_cell([INF] * 3, correct=[True, True, False])])
    for wrong in ([], [1.0], [[math.nan]], [[-1.0]]):
        with pytest.raises(ValueError, match="table of distances"):
            local_optimality(wrong)


def corrupted(make_cell, name: str, severity: int, robust: int):
    spec = {"parameters": {"name": name, "severity": severity}}
    sizes = [INF] * robust + [0.1] * (10 - robust)
    return make_cell(sizes, attack=f"{name}-{severity}", attack_spec=spec, threat="unrestricted")


def test_known_corruption_errors():
    """Errors .2 to .6 against a reference of .4 to .8, clean errors .1 and .3."""
    errors, reference = [0.2, 0.3, 0.4, 0.5, 0.6], [0.4, 0.5, 0.6, 0.7, 0.8]
    assert corruption_error(errors, reference) == pytest.approx(2 / 3)
    assert relative_corruption_error(errors, reference, clean=0.1, reference_clean=0.3) == pytest.approx(1.0)
    assert mean_corruption_error({"fog": errors, "jpeg": reference}, {"fog": reference, "jpeg": reference}) == pytest.approx(
        5 / 6
    )
    assert mean_corruption_error({"fog": errors}) == pytest.approx(0.4)
    with pytest.raises(UsageError, match="no errors of fog"):
        mean_corruption_error({"fog": errors}, {"fog": [0.4]})


def test_every_kind_of_corruption_has_the_same_weight(make_cell):
    cells = [corrupted(make_cell, "fog", s, r) for s, r in ((2, 6), (1, 8))] + [corrupted(make_cell, "jpeg", 1, 1)]
    threat = Threat.parse("unrestricted")
    assert AverageCase()(cells, threat).value == pytest.approx((0.7 + 0.1) / 2)
    errors = corruption_errors(cells, threat)
    assert {name: list(values) for name, values in errors.items()} == {"fog": pytest.approx([0.2, 0.4]), "jpeg": [0.9]}
    with pytest.raises(UsageError, match="no name and severity"):
        corruption_errors([make_cell([INF], threat="unrestricted")], threat)

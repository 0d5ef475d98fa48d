from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from robustbench_lite import AmbiguousName, UnknownName, UsageError
from robustbench_lite.leaderboard.comparison import compare
from robustbench_lite.statistics import difference_interval, mcnemar, wilcoxon_smaller

from .conftest import Held, N


def held(cells):
    return [Held(cell) for cell in cells]


def only(cells, a="x", b="y", **options):
    (found,) = compare(held(cells), a, b, **options)
    return found


def test_two_defenses_are_compared_by_their_worst_case(make_cell):
    cells = [
        make_cell("x", "a", range(4)),
        make_cell("x", "b", range(2, 8)),
        make_cell("y", "a", range(6, 20)),
        make_cell("y", "b", [20, 21], wrong=[39]),
        make_cell("y", "only-here"),
    ]
    found = only(cells)
    x, y = np.arange(N) >= 8, np.array([i not in {*range(6, 22), 39} for i in range(N)])
    assert (found.kind, found.dataset, found.threat, found.protocol, found.n) == (
        "defense",
        "digits",
        "linf:0.15",
        "quick@1",
        N,
    )
    assert (found.a.robust.value, found.b.robust.value) == (x.mean(), y.mean())
    gap, interval = difference_interval(x, y)
    assert (found.difference.value, found.difference.low, found.difference.high) == (gap, *interval)
    assert found.p == mcnemar(x, y)
    assert found.a.only == (*range(8, 22), 39)
    assert found.b.only == (*range(6),)
    assert (found.both, found.neither) == (N - 23, 2)
    assert (found.against, found.left_out) == (("a", "b"), ("only-here",))
    assert [(c.name, c.beaten, c.alone) for c in found.a.lost_by] == [
        ("a", 12, 12),
        ("b", 2, 2),
        ("wrong without an attack", 1, 1),
    ]
    assert [(c.name, c.beaten, c.alone) for c in found.b.lost_by] == [("a", 4, 2), ("b", 4, 2)]
    assert (found.a.passes, found.a.clean.value, found.b.clean.value) == (60, 1.0, 39 / N)


def test_comparing_is_antisymmetric(make_cell):
    cells = [make_cell("x", "a", range(4)), make_cell("y", "a", range(2, 20))]
    forth, back = only(cells), only(cells, "y", "x")
    assert forth.difference.value == -back.difference.value
    assert (forth.difference.low, forth.difference.high) == pytest.approx((-back.difference.high, -back.difference.low))
    assert forth.p == back.p
    assert (forth.a, forth.b) == (back.b, back.a)


def test_a_defense_with_itself_is_no_different(make_cell):
    found = only([make_cell("x", "a", range(4))], "x", "x")
    assert (found.difference.value, found.p, found.a.only, found.both) == (0, 1, (), N - 4)


def test_two_attacks_are_compared_on_each_defense(make_cell):
    cells = [
        make_cell(d, a, hit) for d, a, hit in (("x", "a", range(9)), ("x", "b", range(5, 10)), ("y", "a", [3]), ("y", "b", []))
    ]
    first, second = compare(held([*cells, make_cell("z", "a")]), "a", "b")
    assert (first.against, second.against) == (("x",), ("y",))
    assert (first.a.only, first.b.only) == ((9,), (0, 1, 2, 3, 4))
    assert first.difference.value == pytest.approx(-4 / N)
    assert [(c.name, c.beaten) for c in first.b.lost_by] == [("a", 5)]
    assert (second.b.only, second.a.only, first.p_smaller) == ((3,), (), None)


def test_of_attacks_made_of_others_the_members_are_told(make_cell):
    cell = make_cell("x", "team", range(6))
    members = [make_cell(attack=name).spec["attack"] for name in ("first", "second")]
    arrays = cell.arrays | {"member": np.array([1, 1, 1, 2, 2, 0] + [0] * (N - 6))}
    team = replace(cell, arrays=arrays, spec=cell.spec | {"attack": cell.spec["attack"] | {"members": members}})
    found = only([team, make_cell("x", "alone", [0])], "alone", "team")
    assert [(c.name, c.beaten) for c in found.a.lost_by] == [("team: first", 2), ("team: second", 2), ("team: itself", 1)]


def test_minimal_norm_attacks_are_compared_by_their_sizes_too(make_cell):
    near, far = np.linspace(0.01, 0.2, 30), np.linspace(0.02, 0.4, 30)
    cells = [
        make_cell("x", "near", range(30), sizes=near, threat="linf"),
        make_cell("x", "far", range(30), sizes=far, threat="linf"),
    ]
    found = only([*cells, make_cell("x", "pgd", threat="linf:0.15")], "near", "far")
    padded = [np.concatenate([s, np.full(10, np.inf)]) for s in (near, far)]
    assert found.p_smaller == (wilcoxon_smaller(*padded), wilcoxon_smaller(*reversed(padded)))
    assert found.p_smaller[0] < 0.001
    assert found.a.median == near[19] < found.b.median < math.inf
    assert found.threat == "linf:0.15"
    assert found.a.robust.value == (N - (near <= 0.15).sum()) / N


def test_each_data_set_and_threat_model_is_a_comparison_of_its_own(make_cell):
    cells = [make_cell(d, dataset=s, threat=t) for d in "xy" for s in ("digits", "mnist") for t in ("linf:0.1", "l2:1")]
    found = compare(held(cells), "x", "y")
    assert len({(each.dataset, each.threat) for each in found}) == len(found) == 4
    found = compare(held(cells), "x", "y", wanted=lambda dataset, threat: dataset == "mnist" and threat.norm == "l2")
    assert [(each.dataset, each.threat) for each in found] == [("mnist", "l2:1")]


def test_what_cannot_be_compared_says_why(make_cell):
    cells = [
        make_cell("x", "a"),
        make_cell("y", "b"),
        make_cell("z", "a", index=range(1, N + 1)),
        make_cell("w", "a", status="error"),
    ]
    with pytest.raises(UnknownName, match="'pgd-at'") as caught:
        compare(held(cells), "x", "pgd-at")
    assert "stored are" in caught.value.hint
    with pytest.raises(UsageError, match="a defense and an attack"):
        compare(held(cells), "x", "a")
    for other in "yzw":
        with pytest.raises(UsageError, match=f"both x and {other} was attacked alike") as caught:
            compare(held(cells), "x", other)
        assert caught.value.hint.startswith("rbl run --defense 'x,")


def test_a_name_is_enough_where_one_label_only_has_it(make_cell):
    cells = [make_cell("x", "fmn[steps=40]", range(3)), make_cell("x", "fab[steps=10]", range(5))]
    (found,) = compare(held(cells), "fmn", "fab")
    assert (found.a.label, found.b.label) == ("fmn[steps=40]", "fab[steps=10]")
    cells.append(make_cell("x", "fmn[steps=99]"))
    with pytest.raises(AmbiguousName, match="'fmn' stands for 2") as caught:
        compare(held(cells), "fmn", "fab")
    assert caught.value.hint == "name one of 'fmn[steps=40]', 'fmn[steps=99]'"
    cells.append(make_cell("x", "fmn"))
    assert compare(held(cells), "fmn", "fab")[0].a.label == "fmn"


def test_names_that_stand_for_several(make_cell):
    cells = [make_cell("x", weights=w * 64, beaten=range(i)) for i, w in enumerate("ab")]
    cells += [make_cell("noise", "noise"), make_cell("blur", "noise"), make_cell("blur", "blur"), make_cell("noise", "blur")]
    with pytest.raises(AmbiguousName) as caught:
        compare(held(cells), "x", "blur")
    assert caught.value.hint == "name one of 'x (weights aaaaaaaa)', 'x (weights bbbbbbbb)'"
    found = only(cells, "x (weights aaaaaaaa)", "x (weights bbbbbbbb)")
    assert found.b.robust.value == 39 / N
    with pytest.raises(AmbiguousName, match="defenses and of attacks") as caught:
        compare(held(cells), "noise", "blur")
    assert "--kind" in caught.value.hint
    assert len(compare(held(cells), "noise", "blur", kind="attack")) == 2
    assert compare(held(cells), "noise", "blur", kind="defense")[0].against == ("blur", "noise")

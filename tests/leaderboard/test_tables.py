from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from robustbench_lite import MetricValue, Threat, UsageError
from robustbench_lite.leaderboard import About, Metrics, build_tables

from .conftest import N, find_metric

HALF = N // 2


def shown(table):
    return [(row.rank, row.defense, row.worst.value if row.worst else None) for row in table.rows]


def entries(table, defense):
    (row,) = [row for row in table.rows if row.defense == defense]
    return dict(zip([a.label for a in table.attacks], row.entries, strict=True))


def test_attacks_that_break_disjoint_halves_leave_nothing(make_cell, one):
    table = one([make_cell(attack="a", beaten=range(HALF)), make_cell(attack="b", beaten=range(HALF, N))])
    (row,) = table.rows
    assert [e.value.value for e in row.entries] == [0.5, 0.5]
    assert (row.worst.value, row.worst.n, row.worst.low) == (0.0, N, 0.0)
    assert (row.clean.value, row.clean.n, table.n) == (1.0, N, N)


def test_ranks_ties_and_order(make_cell, one):
    cells = [
        make_cell("worst", beaten=range(38)),
        make_cell("b-tied", beaten=range(3)),
        make_cell("best", beaten=range(2)),
        make_cell("a-tied", beaten=range(3)),
    ]
    assert shown(one(cells)) == [(1, "best", 0.95), (1, "a-tied", 0.925), (1, "b-tied", 0.925), (4, "worst", 0.05)]


def test_the_order_of_the_cells_does_not_matter(tables, varied):
    expected = tables(varied)
    for seed in range(5):
        assert tables(varied, shuffle=seed) == expected


def test_clean_errors_are_not_robust(make_cell, one):
    (row,) = one([make_cell(beaten=[0, 1], wrong=[1, 2])]).rows
    assert (row.clean.value, row.worst.value) == (38 / N, 37 / N)


def test_a_missing_cell_costs_the_rank(make_cell, one):
    table = one([make_cell("whole", "a"), make_cell("whole", "b", range(30)), make_cell("gap", "a")])
    assert shown(table) == [(1, "whole", 0.25), (None, "gap", None)]
    assert entries(table, "gap")["a"].value.value == 1.0
    assert (entries(table, "gap")["b"].status, entries(table, "gap")["b"].notes) == ("missing", ("missing: not run",))


@pytest.mark.parametrize("status", ["error", "timeout", "out-of-memory", "crashed", "missing"])
def test_a_failed_cell_is_shown_and_costs_the_rank(make_cell, one, status):
    table = one([make_cell("x", "a"), make_cell("x", "b", status=status, reason="the reason"), make_cell("y", "a", range(9))])
    assert [row.rank for row in table.rows] == [None, None]  # y lacks b, which counts as an attack of the table
    entry = entries(table, "x")["b"]
    assert (entry.status, entry.value, entry.notes) == (status, None, (f"{status}: the reason",))


def test_a_partial_cell_is_no_result(make_cell, one):
    cell = make_cell("x", "b", range(3), n=16, status="partial")
    table = one([make_cell("x", "a"), cell])
    entry = entries(table, "x")["b"]
    assert (entry.status, entry.progress, entry.value) == ("partial", "16/40", None)
    assert table.rows[0].worst is None
    assert (table.rows[0].cost.forwards, table.n) == (20, N)


def test_a_table_of_failures_alone(make_cell, one):
    table = one([make_cell(status="error", reason="no")])
    (row,) = table.rows
    assert (row.rank, row.clean, row.worst, row.cost.forwards, row.cost.seconds, table.n) == (None, None, None, None, None, N)


def test_done_without_examples_is_an_error(make_cell, one):
    empty = replace(make_cell(attack="b"), arrays={})
    table = one([make_cell(attack="a"), empty])
    assert entries(table, "d")["b"].status == "error"
    assert table.rows[0].rank is None


def test_an_attack_that_does_not_apply_costs_nothing(make_cell, one):
    cells = [make_cell("x", "a"), make_cell("x", "b", range(20)), make_cell("y", "a", range(2))]
    table = one(cells, not_applicable={("y", "b"): "no gradient"})
    assert shown(table) == [(1, "y", 0.95), (2, "x", 0.5)]
    assert (entries(table, "y")["b"].status, entries(table, "y")["b"].notes) == (
        "not-applicable",
        ("does not apply: no gradient",),
    )


def test_a_result_outweighs_not_applicable(make_cell, one):
    table = one([make_cell("x", "a", range(4))], not_applicable={("x", "a"): "no"})
    assert entries(table, "x")["a"].value.value == 0.9


def test_nothing_but_attacks_that_do_not_apply_is_no_rank(make_cell, one):
    cells = [make_cell("x", "a"), make_cell("y", "a", status="missing")]
    table = one(cells, not_applicable={("y", "a"): "no"})
    assert shown(table) == [(1, "x", 1.0), (None, "y", None)]


def test_flags_keep_the_number_and_cost_the_rank(make_cell, one):
    table = one([make_cell("x"), make_cell("y", beaten=range(10))], flags={"x": ["gradients are zero"]})
    assert shown(table) == [(1, "y", 0.75), (None, "x", 1.0)]
    assert table.rows[1].flags == ("gradients are zero",)


def test_every_reason_for_no_rank_is_told(make_cell, one):
    cells = [make_cell("x", a) for a in "abc"]
    cells += [
        make_cell("y", "a"),
        make_cell("y", "b", status="error", reason="no"),
        make_cell("y", "c", n=16, status="partial"),
    ]
    found = {row.defense: row.unranked for row in one([*cells, make_cell("z", "a")], flags={"y": ["one", "two"]}).rows}
    assert found == {
        "x": (),
        "y": ("flagged: one", "flagged: two", "b: error: no", "c: partial: not finished"),
        "z": ("b, c: missing: not run",),
    }


def of_version(version, *parts):
    """Says of results of another version of the attack or the defense that they are out of date."""

    def stale(spec):
        return {part: f"{part} of version {spec[part]['version']}" for part in parts if spec[part]["version"] != version}

    return stale


def with_attack_version(cell, version):
    spec = cell.spec | {"attack": cell.spec["attack"] | {"version": version}}
    return replace(cell, key=f"{cell.key}{version}", spec=spec)


def test_a_defense_that_is_out_of_date_is_shown_apart_with_its_numbers(make_cell, one):
    cells = [make_cell("x", version=2, beaten=range(9)), make_cell("x", version=1), make_cell("y", version=2)]
    table = one(cells, stale=of_version(2, "defense"))
    assert shown(table) == [(1, "y", 1.0), (2, "x", 31 / N), (None, "x (version 1)", 1.0)]
    assert table.rows[-1].unranked == ("out of date: defense of version 1",)
    assert [row.defense for row in table.ranked] == ["y", "x"]


def test_an_attack_that_is_out_of_date_is_no_result(make_cell, one):
    """Where others have the new one; it is passed over where there is a new one too, or where nobody has."""

    def stale(spec):
        return of_version(2, "attack")(spec) if spec["attack"]["id"] == "rbl/b" else {}

    new = [with_attack_version(make_cell(d, "b", range(i)), 2) for i, d in enumerate("xy")]
    old = [make_cell("y", "b", range(30)), make_cell("z", "b")]
    table = one([*(make_cell(d, "a") for d in "xyz"), *new, *old], stale=stale)
    assert shown(table) == [(1, "x", 1.0), (1, "y", 39 / N), (None, "z", None)]
    assert (table.rows[-1].entries[1].status, table.rows[-1].entries[1].value) == ("stale", None)
    assert table.rows[-1].unranked == ("b: out of date: attack of version 1",)
    table = one([*(make_cell(d, "a") for d in "xyz"), *old], stale=stale)
    assert [a.label for a in table.attacks] == ["a"]
    assert [row.rank for row in table.rows] == [1, 1, 1]


def test_data_that_changed_make_a_table_without_ranks(make_cell, one, tables):
    cell = make_cell()
    assert tables([cell], stale=lambda spec: {"attack": "old"}) == []
    table = one([cell], stale=lambda spec: {"dataset": "fingerprint changed"})
    assert table.outdated
    assert table.rows[0].unranked == ("out of date: fingerprint changed",)


@pytest.mark.parametrize("stochastic", [False, True])
def test_clean_predictions_that_change(make_cell, one, stochastic):
    cells = [
        make_cell(attack="a", wrong=[0, 1], stochastic=stochastic),
        make_cell(attack="b", wrong=[1, 2], stochastic=stochastic),
    ]
    (row,) = one(cells).rows
    said = "unstable clean predictions: 2 examples right in one cell and wrong in another"
    assert row.worst.value == 37 / N
    assert (row.rank is None) is (not stochastic)
    assert (row.notes if stochastic else row.flags)[0].startswith(said)
    assert len(row.notes) + len(row.flags) == 1


def test_refused_proposals_are_told(make_cell, one):
    cell = make_cell(rejected={0: 1, 1: 9, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7}, unstable=2)
    assert one([cell]).rows[0].entries[0].notes == (
        "1 proposal not finite, judged not adversarial",
        "2 proposals outside the box, judged not adversarial",
        "3 proposals outside the threat model, judged not adversarial",
        "4 proposals of wrong shape or dtype, judged not adversarial",
        "5 proposals missing since the attack raised an error, judged not adversarial",
        "7 proposals on which the defense's logits are not finite, judged not adversarial",
        "2 examples beaten in the search but not on the judge's fresh passes",
    )
    assert one([make_cell(rejected={1: 20, 7: 20})]).rows[0].entries[0].notes == ()


def test_costs_are_sums_over_done_cells(make_cell, one):
    cells = [make_cell(attack="a", seconds=2.0), make_cell(attack="b", seconds=0.5), make_cell(attack="c", status="error")]
    (row,) = one(cells).rows
    assert (row.cost.forwards, row.cost.backwards, row.cost.seconds) == (40, 20, 2.5)


def test_a_minimal_norm_cell_enters_every_table_of_its_norm(make_cell, tables):
    sizes = [0.02 * (i + 1) for i in range(20)]
    cells = [
        make_cell("x", "fmn", range(20), sizes=sizes, threat="linf"),
        make_cell("x", "pgd", range(2), threat="linf:0.1"),
        make_cell("x", "pgd", range(12), threat="linf:0.2"),
        make_cell("x", "pgd", range(9), threat="l2:1"),
    ]
    found = {str(t.threat): t for t in tables(cells)}
    assert list(found) == ["linf:0.1", "linf:0.2", "l2:1"]
    assert [a.label for a in found["l2:1"].attacks] == ["pgd"]
    for eps, beaten in (("0.1", 5), ("0.2", 12)):  # up to 0.1: five sizes, of which pgd broke two as well
        table = found[f"linf:{eps}"]
        fmn = entries(table, "x")["fmn"]
        assert fmn.value.value == pytest.approx(1 - sum(s <= float(eps) + 1e-9 for s in sizes) / N)
        assert table.rows[0].worst.value == pytest.approx(1 - beaten / N if eps == "0.1" else 1 - 12 / N)
        assert fmn.median.value == sizes[-1]
        assert entries(table, "x")["pgd"].median is None


def test_minimal_norm_cells_alone_make_no_table_but_are_reported(make_cell, tables):
    cells = [make_cell("x", "fmn", range(20), threat="linf")]
    said = []
    assert tables(cells, note=said.append) == []
    assert len(said) == 1
    assert "digits in linf" in said[0]
    assert "no radius is known" in said[0]


def test_radii_can_be_given_for_minimal_norm_cells(make_cell, tables):
    cells = [make_cell("x", "fmn", range(20), sizes=0.1, threat="linf")]
    wanted = [Threat.parse(t) for t in ("linf:0.05", "linf:8/255", "linf:0.1", "l2:0.5")]
    found = tables(cells, threats=wanted)
    assert [(str(t.threat), t.rows[0].worst.value) for t in found] == [
        ("linf:8/255", 1.0),
        ("linf:0.05", 1.0),
        ("linf:0.1", 0.5),
    ]


def test_equal_radii_are_one_table_however_they_are_written(make_cell, one):
    cells = [make_cell("x", threat="linf:0.50"), make_cell("y", threat="linf:1/2"), make_cell("z", threat="linf:0.5")]
    for seed in range(4):
        table = one(cells, shuffle=seed)
        assert (str(table.threat), len(table.rows)) == ("linf:0.5", 3)


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "mnist"},
        {"subset": "t" * 64},
        {"protocol": {"version": 2}},
        {"protocol": {"name": "standard"}},
        {"protocol": {"eot": 20}},
        {"protocol": {"n": 12}},
        {"seed": 1},
        {"threat": "linf:0.3"},
        {"threat": "l2:0.15"},
    ],
)
def test_what_was_asked_differently_is_never_ranked_together(make_cell, tables, other):
    found = tables([make_cell("x"), make_cell("y", **other)])
    assert [[row.defense for row in t.rows] for t in found] in ([["x"], ["y"]], [["y"], ["x"]])


def test_versions_and_weights_of_one_name_are_told_apart(make_cell, one):
    cells = [make_cell("x", weights=w) for w in ("a" * 64, "b" * 64)] + [make_cell("y", version=v) for v in (1, 2)]
    labels = [row.defense for row in one(cells).rows]
    assert labels == ["x (weights aaaaaaaa)", "x (weights bbbbbbbb)", "y (version 1)", "y (version 2)"]


def test_plugins_that_share_a_name_are_told_apart(make_cell, one):
    mine, theirs = make_cell("x"), make_cell("x")
    theirs = replace(theirs, key="0", spec=theirs.spec | {"attack": theirs.spec["attack"] | {"id": "lab/a"}})
    hidden = replace(mine, key="1", spec=mine.spec | {"defense": mine.spec["defense"] | {"differentiable": False}})
    table = one([mine, theirs, hidden])
    assert [a.label for a in table.attacks] == ["a (lab/a)", "a (rbl/a)"]
    names = sorted(row.defense for row in table.rows)
    assert len(set(names)) == 2
    assert all(name.startswith("x #") for name in names)


def test_a_done_cell_wins_over_a_failed_one_of_the_same_place(make_cell, one):
    for status in ("crashed", "error"):
        failed = make_cell(status=status, threat="linf:.15")
        assert one([failed, make_cell()]).rows[0].rank == 1
        assert one([make_cell(), failed]).rows[0].rank == 1


def test_different_examples_in_one_row_are_no_worst_case(make_cell, one):
    table = one([make_cell(attack="a"), make_cell(attack="b", index=range(1, N + 1)), make_cell("y", "a"), make_cell("y", "b")])
    assert shown(table) == [(1, "y", 1.0), (None, "d", None)]
    assert "different examples" in table.rows[1].flags[0]


def test_different_examples_in_two_rows_are_not_compared(make_cell, one):
    table = one([make_cell("x"), make_cell("y", beaten=[0], index=range(1, N + 1))])
    assert shown(table) == [(1, "x", 1.0), (None, "y", 0.975)]
    assert table.rows[1].flags == ("judged on other examples than x",)


def test_a_wrapper_says_what_it_stands_in_front_of(make_cell, one):
    plain = make_cell("jpeg")
    base = {**plain.spec["defense"], "label": "pgd-at\x1b[31m"}
    cell = replace(plain, spec={**plain.spec, "defense": {**plain.spec["defense"], "base": base}})
    (row,) = one([cell]).rows
    assert row.notes == ("in front of pgd-at[31m",)
    assert row.rank == 1
    several = {**plain.spec["defense"], "bases": [base, {**base, "label": "trades"}]}
    (row,) = one([replace(plain, spec={**plain.spec, "defense": several})]).rows
    assert row.notes == ("in front of pgd-at[31m, trades",)


def test_references_come_from_the_caller(make_cell, one):
    table = one([make_cell("x")], about=lambda identifier: About(reference=f"doi:10.1000/{identifier}"))
    assert table.rows[0].reference == "doi:10.1000/rbl/x"


def in_front_of(cell, **parts):
    """The cell with a wrapper as its defense."""
    return replace(cell, key=f"{cell.key}w", spec=cell.spec | {"defense": cell.spec["defense"] | parts})


def made_on(cell, *surrogates):
    """The cell of an attack that was made on these defenses."""
    attack = cell.spec["attack"] | {"access": "transfer", "surrogates": list(surrogates)}
    return replace(cell, key=f"{cell.key}t", spec=cell.spec | {"attack": attack})


def test_marks_are_those_of_all_parts_of_a_defense(make_cell, one):
    declared = {
        "rbl/x": About(fidelity="paper-formula", reference="arXiv:1706.06083"),
        "rbl/base": About(fidelity="reconstruction", extra_data="tiny\nimages"),
        "rbl/inner": About(extra_data="noise"),
    }
    base = make_cell("base").spec["defense"] | {"base": make_cell("inner").spec["defense"]}
    cells = [make_cell("y"), in_front_of(make_cell("x"), base=base), in_front_of(make_cell("z"), bases=[base, base])]
    found = {row.defense: row for row in one(cells, about=lambda identifier: declared.get(identifier, About())).rows}
    assert (found["y"].fidelity, found["y"].extra_data, found["y"].notes) == ("", "", ())
    for name in "xz":
        assert (found[name].fidelity, found[name].extra_data) == ("reconstruction", "tiny images; noise")
        assert [note.split(":")[0] for note in found[name].notes[1:]] == ["a reconstruction", "trained with extra data"]
    assert found["x"].reference == "arXiv:1706.06083"


def named(protocol, version):
    return ["rbl/pgd", "rbl/fgsm"] if (protocol, version) == ("quick", 1) else []


def test_naive_attacks_are_those_that_the_protocol_names(make_cell, one):
    cells = [make_cell("x", "pgd", range(4)), make_cell("x", "fgsm", [9]), make_cell("x", "square", range(4, 20))]
    assert one(cells, naive=named).rows[0].naive.value == 35 / N
    assert one(cells).rows[0].naive is None
    cells = [replace(cell, spec=cell.spec | {"protocol": cell.spec["protocol"] | {"version": 2}}) for cell in cells]
    assert one(cells, naive=named).rows[0].naive is None


@pytest.mark.parametrize(("beaten", "shown"), [(5, False), (6, True)])
def test_a_naive_number_stands_beside_the_worst_case_where_a_paired_test_separates_them(make_cell, one, beaten, shown):
    """Two-sided exact McNemar with all discordant pairs on one side: 2 / 2**5 > 0.05 >= 2 / 2**6."""
    (row,) = one([make_cell("x", "pgd", [0]), make_cell("x", "square", range(1, 1 + beaten))], naive=named).rows
    assert (row.naive is not None) is shown
    assert row.worst.value == 1 - (1 + beaten) / N


def test_of_a_wrapper_those_attacks_are_naive_that_were_made_on_what_it_wraps(make_cell, one):
    inner, other = make_cell("inner").spec["defense"], make_cell("other").spec["defense"]
    base = make_cell("base").spec["defense"] | {"base": inner}
    cells = [
        make_cell("x", "pgd", range(20)),
        made_on(make_cell("x", "t-base", [1]), base),
        made_on(make_cell("x", "t-inner", [2]), inner),
        made_on(make_cell("x", "t-both", [3]), base, inner),
        made_on(make_cell("x", "t-other", [4]), other),
        made_on(make_cell("x", "t-mixed", [5]), base, other),
    ]
    (row,) = one([in_front_of(cell, base=base) for cell in cells], naive=named).rows
    assert (row.naive.value, row.worst.value) == (37 / N, 20 / N)
    (row,) = one([in_front_of(cells[0], base=base)], naive=named).rows
    assert row.naive is None


def test_nothing_is_naive_where_there_is_no_worst_case(make_cell, one):
    cells = [make_cell("x", "pgd"), make_cell("x", "a", range(20)), make_cell("x", "b", status="error")]
    assert one(cells, naive=named).rows[0].naive is None


def test_metrics_are_the_ones_that_are_asked_for(make_cell, one):
    def find(identifier):
        return (
            (lambda cells, threat: MetricValue(value=0.25, n=len(cells))) if identifier == "lab/w" else find_metric(identifier)
        )

    (row,) = one([make_cell(beaten=[1])], metric=find, metrics=Metrics(worst="lab/w")).rows
    assert row.worst == MetricValue(value=0.25, n=1)


def failing(identifier, outcome):
    """All metrics, but one that raises or returns ``outcome``."""

    def wrong(cell, threat):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return lambda asked: wrong if asked == identifier else find_metric(asked)


@pytest.mark.parametrize("outcome", [ZeroDivisionError("division"), 0.5, UsageError("refused")])
@pytest.mark.parametrize("name", ["clean-accuracy", "robust-accuracy", "worst-case"])
def test_a_failing_metric_is_never_a_score(make_cell, one, name, outcome):
    table = one([make_cell()], metric=failing(f"rbl/{name}", outcome))
    (row,) = table.rows
    assert row.rank is None
    assert row.worst is None
    said = " ".join(row.flags) + " ".join(row.entries[0].notes)
    assert ("refused" if isinstance(outcome, UsageError) else f"metric rbl/{name}") in said


def test_a_failing_cost_costs_its_own_number(make_cell, one):
    (row,) = one([make_cell()], metric=failing("rbl/seconds", ValueError("no clock"))).rows
    assert (row.rank, row.cost.seconds, row.cost.forwards) == (1, None, 20)
    assert row.entries[0].notes == ("metric rbl/seconds failed: ValueError: no clock",)


def test_a_metric_that_is_no_number_is_none(make_cell, one):
    cells = [make_cell("x", "fmn", wrong=range(N), threat="linf"), make_cell("x", "pgd", wrong=range(N))]
    (row,) = one(cells).rows
    assert (row.entries[0].median, row.worst.value, row.clean.value) == (None, 0.0, 0.0)


def damaged(cell, part, key):
    return replace(cell, spec=cell.spec | {part: {k: v for k, v in cell.spec[part].items() if k != key}})


def test_records_that_cannot_be_read_are_told_and_skipped(make_cell, one):
    sound = make_cell("x")
    lacking = replace(sound, key="3", arrays={k: v for k, v in sound.arrays.items() if k != "unstable"})
    wrong = replace(sound, key="4", spec=sound.spec | {"threat": "union"})
    said = []
    cells = [sound, damaged(replace(sound, key="1"), "defense", "label"), damaged(replace(sound, key="2"), "dataset", "id")]
    table = one([*cells, lacking, wrong], note=said.append)
    assert [row.rank for row in table.rows] == [1]
    about = dict(text.split(" is in no table: ") for text in said)
    assert sorted(about) == [f"cell {i}" for i in "1234"]
    for i, problem in enumerate(("lacks label", "lacks id", "unstable", "union"), 1):
        assert problem in about[f"cell {i}"]


def test_texts_from_plugins_lose_control_characters(make_cell, one):
    cell = make_cell("x\x1b[31m\u202e", "a\nb", status="error", reason="one\r\ntwo\x00\ud800" + "y" * 5000)
    table = one([cell])
    assert (table.rows[0].defense, table.attacks[0].label) == ("x[31m", "a b")
    (note,) = table.rows[0].entries[0].notes
    assert note.startswith("error: one twoy")
    assert len(note) <= 400


def test_union_threats_have_their_own_table(make_cell, tables):
    union = "union:linf:0.03+l2:0.5"
    found = tables(
        [make_cell("x", threat=union), make_cell("y", threat="union:l2:.5+linf:0.03"), make_cell("z", threat="l2:0.5")]
    )
    assert [(t.threat.norm, len(t.rows)) for t in found] == [("l2", 1), ("union", 2)]


def test_what_is_unrestricted_has_its_own_table_after_the_others(make_cell, tables):
    beaten = make_cell("x", "rotates", [0, 1], threat="unrestricted", sizes=0.4)
    missed = make_cell("x", "blurs", threat="unrestricted")
    small = make_cell("x", "minimal", range(5), threat="linf", goal="minimal-norm")
    found = tables([beaten, missed, small, make_cell("x", threat="union:linf:0.03+l2:0.5"), make_cell("x", threat="linf:0.2")])
    assert [str(t.threat) for t in found] == ["linf:0.2", "union:linf:0.03+l2:0.5", "unrestricted"]
    (row,) = found[-1].rows
    assert [a.label for a in found[-1].attacks] == ["blurs", "rotates"]
    assert (row.rank, row.worst.value, row.entries[1].median) == (1, 1 - 2 / 40, None)


def test_memory_holds_one_row_and_not_the_store(make_cell, tables):
    """The arrays of a row are let go before the next row's are read: twice the rows take no more than their own numbers."""
    n = 4000

    class Fresh:
        """A cell whose arrays exist only while somebody holds them."""

        def __init__(self, i):
            self.key, self.spec, self.i = str(i), make_cell(f"d{i // 4}", f"a{i % 4}", n=1).spec, i

        def load_for_tables(self):
            return replace(make_cell(n=n), key=self.key, spec=self.spec)

    def peak(rows):
        cells = [Fresh(i) for i in range(4 * rows)]
        tracemalloc.start()
        (table,) = build_tables(cells, metric=find_metric)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(table.rows) == rows
        return most

    few, many = peak(3), peak(23)
    assert (many - few) / 20 < 8 * n  # a row's verdicts, one byte per example, and some text; its four cells have 35 each


def test_infinite_medians_survive(make_cell, one):
    cells = [make_cell("x", "fmn", range(3), threat="linf"), make_cell("x", "pgd")]
    assert one(cells).rows[0].entries[0].median.value == math.inf
    assert np.isfinite(one(cells).rows[0].worst.value)

"""Verdicts in tables: what costs a rank, what is a footnote, and what programs read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest

from robustbench_lite.diagnostics.record import Record, question, stored_verdicts
from robustbench_lite.leaderboard import csv_table, json_table, markdown
from robustbench_lite.results import CellResult
from robustbench_lite.store import Store
from robustbench_lite.threat import Threat
from robustbench_lite.verdict import Verdict

from .test_trust import CLAIMED

ZERO = Verdict(
    check="zero-gradients", outcome="fail", evidence="zero on 9 of 9", advice="use a surrogate", value=1.0, threshold=0.01
)
WARNED = Verdict(check="gradient-shattering", outcome="warn", evidence="they differ", advice="smooth it")
PASSED = Verdict(check="batch-coupling", outcome="pass", evidence="alone and together")


def of(cell: CellResult, *, access: str = "gradient", steps: int = 40, **attack: Any) -> CellResult:
    """The cell of an attack with that access, which followed so many gradients."""
    spec = {**cell.spec, "attack": {**cell.spec["attack"], "access": access, **attack}}
    return replace(cell, spec=spec, arrays={**cell.arrays, "backwards": np.full(cell.n, steps)})


def test_a_failing_check_of_the_results_costs_the_rank(one, make_cell) -> None:
    """Square beats 20 examples that PGD does not."""
    table = one(
        [
            of(make_cell("masked", "pgd", range(3))),
            of(make_cell("masked", "square", range(10, 30)), access="scores", steps=0),
            of(make_cell("sound", "pgd", range(30))),
            of(make_cell("sound", "square", range(20)), access="scores", steps=0),
        ]
    )
    rows = {row.defense: row for row in table.rows}
    assert rows["sound"].rank == 1
    assert rows["masked"].rank is None
    (flag,) = rows["masked"].flags
    assert flag.startswith("D2 black-box-stronger: only attacks by scores or decisions beat 20 of 40 examples (50.0 %)")
    assert flag.endswith(
        "; try: offer a surrogate of what hides the gradient (BPDA), or attack the logits; give square more queries"
    )
    assert rows["masked"].worst.value == pytest.approx(17 / 40)
    assert {v.outcome for v in rows["sound"].verdicts} == {"pass", "not-applicable"}


def test_what_somebody_says_of_a_defense_costs_it_no_rank(one, make_cell) -> None:
    """A bundle with a Square that beats everything, not verified; the same result made here does."""
    here = of(make_cell("d", "pgd", range(3)))
    square = of(make_cell("d", "square", range(10, 40)), access="scores", steps=0)
    claimed = one([here, square], origin={square.key: CLAIMED}.get)
    assert claimed.rows[0].rank == 1
    assert one([here, square]).rows[0].rank is None


def test_verdicts_on_models_are_told_by_the_spec_and_the_threat(one, make_cell) -> None:
    asked = []

    def stored(spec, threat):
        asked.append((spec["defense"]["label"], str(threat)))
        return {"bad": [ZERO], "odd": [WARNED]}.get(spec["defense"]["label"], [PASSED])

    table = one([of(make_cell(name, "pgd", range(3))) for name in ("good", "odd", "bad")], verdicts=stored)
    assert sorted(asked) == [("bad", "linf:0.15"), ("good", "linf:0.15"), ("odd", "linf:0.15")]
    rows = {row.defense: row for row in table.rows}
    assert (rows["good"].rank, rows["odd"].rank, rows["bad"].rank) == (1, 1, None)
    assert rows["bad"].flags == ("D6 zero-gradients: zero on 9 of 9; try: use a surrogate",)
    assert rows["odd"].flags == ()
    assert rows["odd"].notes == ("D7 gradient-shattering: they differ; try: smooth it",)
    assert rows["good"].notes == ()
    assert PASSED in rows["good"].verdicts


def test_they_are_footnotes_for_people_and_data_for_programs(one, make_cell) -> None:
    table = one([of(make_cell("bad", "pgd", range(3)))], verdicts=lambda spec, threat: [ZERO, WARNED, PASSED])
    text = markdown.render(table)
    assert "flagged: D6 zero-gradients: zero on 9 of 9; try: use a surrogate" in text
    assert "D7 gradient-shattering: they differ; try: smooth it" in text
    assert "alone and together" not in text
    document = json.loads(json_table.render(table))
    jsonschema.validate(document, json_table.schema())
    found = {v["check"]: v for v in document["rows"][0]["verdicts"]}
    assert found["zero-gradients"] == {
        "check": "zero-gradients",
        "outcome": "fail",
        "evidence": "zero on 9 of 9",
        "advice": "use a surrogate",
        "value": 1.0,
        "threshold": 0.01,
    }
    assert found["batch-coupling"]["outcome"] == "pass"
    assert found["transfer-stronger"]["outcome"] == "not-applicable"
    csv_table.render(table)


def test_what_a_model_says_of_itself_cannot_break_a_table(one, make_cell) -> None:
    """Evidence may hold a plugin's words."""
    hostile = replace(ZERO, evidence="\x1b[2J| <img src=x>\n" + "x" * 5000)
    table = one([of(make_cell("bad", "pgd", range(3)))], verdicts=lambda spec, threat: [hostile])
    assert "\x1b" not in markdown.render(table)
    assert len(table.rows[0].verdicts[0].evidence) <= 300
    assert len(markdown.render(table).split("\n| ")) == len(
        markdown.render(one([make_cell("bad", "pgd", range(3))])).split("\n| ")
    )


def test_a_row_without_a_done_cell_has_no_verdicts(one, make_cell) -> None:
    table = one([make_cell("bad", "pgd", status="crashed", reason="signal 11")], verdicts=lambda spec, threat: [ZERO])
    assert table.rows[0].verdicts == ()
    assert table.rows[0].flags == ()


def test_stored_verdicts_belong_to_one_question(tmp_path, make_cell) -> None:
    """The same defense with other weights, seed, protocol, data or threat is another one."""
    store, spec, threat = Store.open(tmp_path / "store"), make_cell("d", weights="a" * 64).spec, Threat.parse("linf:0.15")
    Record(store, question(spec, "cheap", threat)).write(ZERO)
    Record(store, question(spec, "expensive", threat)).write(replace(WARNED, check="random-search"))
    assert [v.check for v in stored_verdicts(store, spec, threat)] == ["zero-gradients", "random-search"]
    wider = stored_verdicts(store, spec, Threat.parse("linf:0.3"))
    assert [v.check for v in wider] == ["zero-gradients"]  # which attacks nothing
    assert stored_verdicts(store, {**spec, "attack": {"other": "attack"}}, threat) == stored_verdicts(store, spec, threat)
    others = [{**spec, "seed": 1}, {**spec, "defense": {**spec["defense"], "weights": "b" * 64}}]
    others += [{**spec, "protocol": {**spec["protocol"], "version": 2}}, {**spec, "dataset": {**spec["dataset"], "version": 2}}]
    assert [stored_verdicts(store, other, threat) for other in others] == [[], [], [], []]

"""Attacks made of others: the table says which member beat how many."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from robustbench_lite.leaderboard import Leaderboard, csv_table, json_table, markdown, terminal
from robustbench_lite.results import CellResult

from .conftest import N

LABELS = ("apgd-ce[restarts=5]", "fab-t", "square|[bold]x[/]")


@pytest.fixture
def composite(make_cell) -> Callable[..., CellResult]:
    """A cell of an attack made of LABELS. members: who beat each of the beaten examples."""

    def make(defense: str, members: Sequence[int], *, surrogates: bool = False, **options: Any) -> CellResult:
        cell = make_cell(defense, "team", range(len(members)), **options)
        attack = cell.spec["attack"] | {"members": [{"label": label} for label in LABELS]}
        attack |= {"surrogates": [cell.spec["defense"]]} if surrogates else {}
        column = np.zeros(N, dtype=np.int16)
        column[: len(members)] = members
        return replace(cell, spec=cell.spec | {"attack": attack}, arrays={**cell.arrays, "member": column})

    return make


def credits(table: Leaderboard, row: int = 0) -> list[int]:
    (entry,) = [entry for entry in table.rows[row].entries if entry.members]
    assert [member.label for member in entry.members] == list(LABELS)
    return [member.beaten for member in entry.members]


def test_each_member_is_credited_with_what_it_beat(composite, make_cell, one) -> None:
    table = one([composite("x", [1, 1, 3, 1, 0]), composite("y", []), make_cell("x", "pgd"), make_cell("y", "pgd")])
    by_name = {row.defense: i for i, row in enumerate(table.rows)}
    assert credits(table, by_name["x"]) == [3, 0, 1], "one was beaten by the attack itself"
    assert credits(table, by_name["y"]) == [0, 0, 0]
    assert [e.members for a, e in zip(table.attacks, table.rows[0].entries, strict=True) if a.label == "pgd"] == [()]


def test_clean_errors_are_nobodys(composite, one) -> None:
    assert credits(one([composite("x", [1, 2, 2], wrong=[1])])) == [1, 1, 0]


def test_what_lies_outside_a_tables_radius_does_not_count_there(composite, make_cell, tables) -> None:
    cells = [composite("x", [1, 2, 2, 3], sizes=[0.05, 0.1, 0.15, 0.3], threat="linf")]
    cells += [make_cell("x", "pgd", threat=f"linf:{eps}") for eps in ("0.1", "0.2")]
    found = {str(table.threat): credits(table) for table in tables(cells)}
    assert found == {"linf:0.1": [1, 1, 0], "linf:0.2": [1, 2, 0]}


def test_members_that_only_see_surrogates_beat_nothing(composite, one) -> None:
    assert one([composite("x", [0, 0], surrogates=True)]).rows[0].entries[0].members == ()


def test_json_says_it_as_its_schema_does(composite, make_cell, one) -> None:
    table = one([composite("x", [1, 1, 3]), make_cell("x", "pgd")])
    data = json.loads(json_table.render(table))
    jsonschema.validate(data, json_table.schema())
    shown = data["rows"][0]["attacks"]
    assert shown["team"]["members"] == [{"label": LABELS[0], "beaten": 2}, {"label": LABELS[1], "beaten": 0}] + [
        {"label": LABELS[2], "beaten": 1}
    ]
    assert "members" not in shown["pgd"]
    wrong = json.loads(json.dumps(data).replace('"beaten": 2', '"beaten": -2'))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json_table.schema())


def test_people_see_it_below_the_table(composite, make_cell, one) -> None:
    table = one([composite("x", [1, 1, 3]), composite("y", [2]), make_cell("x", "pgd"), make_cell("y", "pgd")])
    text = markdown.render(table)
    lines = text[text.index("Examples that each member of team beat:") :].splitlines()
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines[2:6]]
    assert lines[2].count(" | ") == 3
    assert [row[1:] for row in cells[2:]] == [["0", "1", "0 |"], ["2", "0", "1 |"]]
    stream = io.StringIO()
    Console(file=stream, width=120, force_terminal=False).print(terminal.render(table))
    assert "Examples that each member of team beat" in stream.getvalue()
    assert "square|[bold]x[/]" in stream.getvalue(), "no markup is read out of a label"
    assert csv_table.render(table).count("\n") == 3
    assert "member of" not in markdown.render(one([make_cell("x", "pgd")]))


def test_a_cell_without_the_column_is_shown_as_before(composite, one) -> None:
    cell = composite("x", [1])
    bare = replace(cell, arrays={name: values for name, values in cell.arrays.items() if name != "member"})
    assert one([bare]).rows[0].entries[0].members == ()

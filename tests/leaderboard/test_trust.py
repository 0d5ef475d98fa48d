"""Where results come from, in every format: run here, self-reported, verified, refuted, published."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace

import jsonschema
import pytest
from rich.console import Console

from robustbench_lite.leaderboard import Leaderboard, csv_table, html, json_table, markdown, terminal
from robustbench_lite.provenance import Check, Origin
from robustbench_lite.published import Published
from robustbench_lite.results import CellResult

CLAIMED = Origin(by="A. Nother", where="https://example.org", bundle="ab" * 32)


def checked(outcome: str) -> Origin:
    check = Check.model_validate({"outcome": outcome, "said": "40 differ", "shards": (1,), "of_shards": 4, "rejudged": 9})
    return CLAIMED.after(check)


PUBLISHED = Published(
    model="Nother2020=Wishing",
    dataset="digits",
    threat="linf:0.15",
    title="Robustness | by wishing",
    authors="A. Nother",
    venue="Nowhere 2020",
    architecture="Mean-1",
    reference="https://example.org/paper",
    clean=0.915,
    autoattack=0.5156,
    reported=0.7,
    external=None,
    corrupted=None,
    extra_data=True,
    unreliable=True,
    notes=("with <b>bold</b> claims",),
)


@pytest.fixture
def table(make_cell: Callable[..., CellResult], one: Callable[..., Leaderboard]) -> Callable[..., Leaderboard]:
    """Two defenses that were run here, and two of which an imported result has the origin that is given."""

    def make(origin: Origin, **options: object) -> Leaderboard:
        here = [make_cell(d, a, range(k)) for d, k in (("ours", 9), ("plain", 30)) for a in ("pgd", "square")]
        theirs = [make_cell("theirs", "pgd", range(2)), make_cell("theirs", "square", range(1))]
        return one([*here, *theirs], origin={cell.key: origin for cell in theirs[:1]}.get, **options)

    return make


def row_of(table: Leaderboard, name: str = "theirs"):
    return next(row for row in table.rows if row.defense == name)


def ranks(table: Leaderboard) -> dict[str, int | None]:
    return {row.defense: row.rank for row in table.rows}


def test_self_reported_rows_have_no_rank_unless_asked_for(table: Callable[..., Leaderboard]) -> None:
    found = table(CLAIMED)
    assert ranks(found) == {"ours": 1, "plain": 2, "theirs": None}
    row = row_of(found)
    assert row.provenance == "self-reported"
    assert row.worst is not None
    assert row.unranked == ("self-reported, and not verified: rbl verify",)
    assert "1 of 2 results self-reported by A. Nother (https://example.org), not verified" in row.notes
    assert row_of(found, "ours").provenance == "run here"
    asked = table(CLAIMED, rank_self_reported=True)
    assert ranks(asked)["theirs"] == 1
    assert "that was asked for" in markdown.render(asked)


def test_verified_rows_are_ranked(table: Callable[..., Leaderboard]) -> None:
    found = table(checked("verified"))
    row = row_of(found)
    assert row.rank == 1
    assert row.provenance == "verified"
    assert "verified here: 1 of 4 shards run again, 9 images judged again" in row.notes[-1]


def test_refuted_results_have_no_number_whatever_is_asked_for(table: Callable[..., Leaderboard]) -> None:
    for asked in (False, True):
        found = table(checked("refuted"), rank_self_reported=asked)
        row = row_of(found)
        assert (row.rank, row.worst, row.provenance) == (None, None, "refuted")
        entry = row.entries[0]
        assert (entry.status, entry.value) == ("refuted", None)
        assert "40 differ" in row.unranked[0]
        assert row.curve is None
        assert "refuted" in markdown.render(found)


def test_an_unverified_check_leaves_a_result_self_reported(table: Callable[..., Leaderboard]) -> None:
    assert row_of(table(checked("unverified"))).provenance == "self-reported"


def test_nobodys_bundle_costs_others_their_ranks(make_cell: Callable[..., CellResult], one: Callable[..., Leaderboard]) -> None:
    """An attack that only a self-reported result is of makes no column, in which all others would be missing."""
    here = make_cell("ours", "pgd", range(9))
    theirs = make_cell("theirs", "their-own-attack", range(1))
    believed = one([here, theirs])
    assert ranks(believed) == {"ours": None, "theirs": None}
    found = one([here, theirs], origin={theirs.key: CLAIMED}.get)
    assert [attack.label for attack in found.attacks] == ["pgd"]
    assert ranks(found) == {"ours": 1, "theirs": None}
    alone = one([theirs], origin={theirs.key: CLAIMED}.get)
    assert [attack.label for attack in alone.attacks] == ["their-own-attack"]


def test_every_format_says_where_results_come_from(table: Callable[..., Leaderboard]) -> None:
    schema = jsonschema.Draft202012Validator(json_table.schema())
    for origin, status in ((CLAIMED, "self-reported"), (checked("verified"), "verified"), (checked("refuted"), "refuted")):
        found = table(origin)
        content = json_table.to_json(found)
        schema.validate(content)
        row = next(row for row in content["rows"] if row["defense"]["label"] == "theirs")
        assert row["provenance"] == status
        assert row["attacks"]["pgd"]["origin"]["status"] == status
        assert row["attacks"]["pgd"]["origin"]["by"] == "A. Nother"
        assert "origin" not in row["attacks"]["square"]
        rows = {each["defense"]: each for each in csv.DictReader(io.StringIO(csv_table.render(found)))}
        assert {name: each["provenance"] for name, each in rows.items()} == {
            "ours": "run here",
            "plain": "run here",
            "theirs": status,
        }
        assert f'<small class="badge">{status}</small>' in html.render([found])
        assert "All other results were run here" in markdown.render(found)
        with Console(width=200, file=io.StringIO()) as console:
            console.print(terminal.render(found))
        assert "self-reported by A. Nother" in console.file.getvalue()  # type: ignore[attr-defined]


def test_published_entries_stand_apart_in_every_format(table: Callable[..., Leaderboard]) -> None:
    found = replace(table(CLAIMED), published=(PUBLISHED,))
    assert "Nother2020=Wishing" not in ranks(found)
    content = json_table.to_json(found)
    jsonschema.Draft202012Validator(json_table.schema()).validate(content)
    assert content["published"][0]["link"] == "https://example.org/paper"
    assert content["published"][0]["autoattack"] == 0.5156
    text = markdown.render(found)
    assert "Published, not run here:" in text
    line = next(line for line in text.splitlines() if "Nother2020=Wishing" in line)
    for said in ("91.50", "51.56", "70.00", "Mean-1", "yes", "Nowhere 2020", "[https://example.org/paper]"):
        assert said in line
    assert "unreliable" in text
    assert "&lt;b&gt;bold" in text
    rows = list(csv.DictReader(io.StringIO(csv_table.render(found))))
    assert rows[-1]["provenance"] == "published, not run here"
    assert (rows[-1]["rank"], rows[-1]["defense"], rows[-1]["worst case"]) == ("", "Nother2020=Wishing", "0.5156")
    page = html.render([found])
    assert 'href="https://example.org/paper"' in page
    assert "&lt;b&gt;bold" in page
    assert "Published, not run here" in page
    with Console(width=200, file=io.StringIO()) as console:
        console.print(terminal.render(found))
    assert "Published, not run here" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "ublished" not in markdown.render(table(CLAIMED))

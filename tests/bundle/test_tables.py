"""From bundle to table, by the commands that users type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bundle.conftest import RUN
from tests.support import invoke
from tests.test_published import entry


def report(store: Path, *options: object) -> dict[str, Any]:
    """The only table of a store."""
    (table,) = invoke("report", "--store", store, "--json", *options).json
    return dict(table)


def test_from_a_bundle_to_a_rank(several: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    invoke(*RUN, "--defense", "toy/mean[scale=2]", "--attack", "toy/shift,toy/minimal", "--store", mine)
    invoke("import", several, "--store", mine)
    before = {row["defense"]["label"]: (row["rank"], row["provenance"]) for row in report(mine)["rows"]}
    assert before == {
        "mean[scale=2]": (1, "run here"),
        "mean": (None, "self-reported"),
        "noisy-mean": (None, "self-reported"),
    }
    asked = report(mine, "--rank-self-reported")["rows"]
    assert [row["rank"] for row in asked] == [1, 1, 1]
    planned = invoke("plan", *RUN[1:-2], "--defense", "toy/mean", "--attack", "toy/shift", "--store", mine).out
    assert "self-reported by A. Nother" in planned
    shown = invoke("show", "mean under shift", "--store", mine)
    assert "self-reported by A. Nother (https://example.org/results)" in shown.out
    assert invoke("show", "mean under shift", "--store", mine, "--json").json["provenance"] == "self-reported"
    invoke("verify", "--all", "--store", mine)
    after = {row["defense"]["label"]: (row["rank"], row["provenance"]) for row in report(mine)["rows"]}
    assert after == {"mean[scale=2]": (1, "run here"), "mean": (1, "verified"), "noisy-mean": (1, "verified")}


def test_published_entries_beside_ones_own(made: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    invoke(*RUN, "--defense", "toy/mean", "--attack", "toy/shift", "--store", mine)
    folder = entry(tmp_path, eps="0.08").parent
    entry(tmp_path, eps="0.5", name="Far2021")
    said = invoke("import", folder, "--store", mine)
    assert "published entries read: 2, of which 2 are new and 0 have changed" in said.out
    (row,) = report(mine)["rows"]
    assert row["rank"] == 1
    assert [each["model"] for each in report(mine)["published"]] == ["Nother2020Wishing"]
    assert "Nother2020Wishing" in invoke("report", "--store", mine, "--format", "markdown").out
    elsewhere = invoke("report", "--store", mine, "--format", "csv")
    assert "Far2021" not in elsewhere.out
    assert "beside no table: blobs linf:0.5 (1)" in elsewhere.err

"""compare, and show of a stored result."""

from __future__ import annotations

import shutil
from pathlib import Path

import jsonschema
import pytest

from robustbench_lite.cli import report
from robustbench_lite.processes import can_fork, cores
from robustbench_lite.protocol import builtin_protocols
from robustbench_lite.store import Store
from tests.support import invoke

QUICK = f"quick@{builtin_protocols()['quick'].version}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two defenses under three attacks, one of which raises, and a second radius."""
    path = tmp_path_factory.mktemp("results") / "store"
    request = ("run", "--dataset", "toy/blobs", "--n", 64, "--defense", "toy/mean,toy/mean[scale=2]", "--executor", "inline")
    invoke(*request, "--attack", "toy/shift,toy/minimal,toy/raises", "--threat", "linf:0.08", "--store", path, code=1)
    invoke(*request, "--attack", "toy/shift", "--threat", "linf:0.01", "--store", path)
    return path


def test_compare_defenses(store: Path) -> None:
    shown = invoke("compare", "mean", "mean[scale=2]", "--store", store, "--threat", "linf:0.08").out
    for said in (
        f"mean and mean[scale=2] under 2 attacks (blobs, linf:0.08, {QUICK}, seed 0, n = 64)",
        "difference",
        "McNemar p =",
    ):
        assert said in shown
    found = invoke("compare", "mean", "mean[scale=2]", "--store", store, "--json").json
    assert [each["threat"] for each in found] == ["linf:0.01", "linf:0.08"]
    assert found[0]["against"] == ["minimal", "shift"]
    assert found[0]["a"]["label"] == "mean"


def test_compare_attacks(store: Path) -> None:
    shown = invoke("compare", "shift", "minimal", "--store", store, "--threat", "linf:0.08").out
    assert "shift and minimal on mean (" in shown
    assert "shift and minimal on mean[scale=2] (" in shown
    assert invoke("compare", "shift", "minimal", "--store", store, "--json").json[0]["kind"] == "attack"


def test_what_cannot_be_compared(store: Path, tmp_path: Path) -> None:
    assert "did you mean 'mean'" in invoke("compare", "mean", "meann", "--store", store, code=2).err
    assert "a defense and an attack" in invoke("compare", "mean", "shift", "--store", store, code=2).err
    refused = invoke("compare", "shift", "raises", "--store", store, code=2).err
    assert "met the same defense" in refused
    assert "rbl run --attack 'shift,raises'" in refused
    assert "no results in" in invoke("compare", "a", "b", "--store", tmp_path, code=2).err


def test_show_a_result_by_name_and_by_key(store: Path) -> None:
    shown = invoke("show", "mean under shift", "--threat", "linf:0.08", "--store", store).out
    (cell,) = [
        c
        for c in Store.open(store, read_only=True).cells()
        if (c.spec["defense"]["label"], c.spec["attack"]["label"], c.spec["threat"]) == ("mean", "shift", "linf:0.08")
    ]
    for said in ("mean under shift", cell.key, "blobs", "64 of 64", "clean accuracy", "Per class", "forwards"):
        assert said in shown
    assert invoke("show", cell.key[:10], "--store", store).out == shown
    found = invoke("show", cell.key[:10], "--store", store, "--json").json
    assert found["numbers"]["clean_accuracy"]["value"] == 1.0
    assert found["asked"]["threat"] == "linf:0.08"
    ambiguous = invoke("show", "mean under shift", "--store", store, code=2).err
    assert "2 results are called 'mean under shift'" in ambiguous
    assert f"rbl show {cell.key[:12]}    blobs, linf:0.08, {QUICK}, n = 64, seed 0" in ambiguous


def test_show_a_minimal_norm_result_and_a_failed_one(store: Path) -> None:
    anywhere = invoke("show", "mean under minimal", "--store", store).out
    assert "At any size; rbl show ... --threat linf:EPS" in anywhere
    within = invoke("show", "mean under minimal", "--threat", "linf:0.01", "--store", store).out
    assert "At any size" not in within
    failed = invoke("show", "mean under raises", "--store", store).out
    assert "error: ValueError: half way through" in failed
    assert "Per class" not in failed


def test_show_a_result_by_names_alone(tmp_path: Path) -> None:
    asked = ("--dataset", "toy/blobs", "--n", 8, "--threat", "linf:0.08", "--attack", "toy/shift", "--store", tmp_path)
    invoke("run", *asked, "--defense", "toy/mean[scale=2]", "--executor", "inline")
    shown = invoke("show", "mean under shift", "--store", tmp_path).out
    assert shown == invoke("show", "mean[scale=2] under shift", "--store", tmp_path).out
    invoke("run", *asked, "--defense", "toy/mean[scale=3]", "--executor", "inline")
    said = invoke("show", "mean under shift", "--store", tmp_path, code=2).err
    assert "name one of 'mean[scale=2]', 'mean[scale=3]'" in said
    for name, count in (("mean", 2), ("mean[scale=3]", 1)):
        bundle = tmp_path / f"{count}.zip"
        assert f"{count} result" in invoke("export", bundle, "--defense", name, "--store", tmp_path).out


def test_show_what_is_not_there(store: Path) -> None:
    assert "did you mean 'mean under shift'" in invoke("show", "mean under shif", "--store", store, code=2).err
    assert "has a key that starts with 'abcdef0123'" in invoke("show", "abcdef0123", "--store", store, code=2).err
    assert "nothing is registered under the name 'nothing'" in invoke("show", "nothing", "--store", store, code=2).err


def test_the_schema_is_printed_and_what_is_printed_keeps_it(store: Path, tmp_path: Path) -> None:
    schema = invoke("report", "--schema").json
    found = invoke("report", "--json", "--store", store).json
    for table in found:
        jsonschema.Draft202012Validator(schema).validate(table)
    assert {row["rank"] for row in found[0]["rows"]} == {1}
    assert {row["rank"] for row in found[1]["rows"]} == {None}


@pytest.mark.skipif(not can_fork() or cores() == 1, reason="one core, or no fork: nothing is spread")
def test_a_report_made_in_several_processes_says_the_same(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "store"
    shutil.copytree(store, damaged)
    for number, attempt in enumerate(sorted(damaged.glob("cells/*/*/attempts/*.json"))):
        if number % 2:
            attempt.write_bytes(attempt.read_bytes().replace(b'"done"', b'"gone"').replace(b'"error"', b'"other"'))
    for columns in damaged.glob("cells/*/*/columns.safetensors"):
        columns.unlink()
    one = invoke("report", "--store", damaged, "--json", code=0)
    monkeypatch.setattr(report, "MANY_RESULTS", 1)
    several = invoke("report", "--store", damaged, "--json", code=0)
    assert several.json == one.json
    assert len(one.json) == 2
    assert one.err.count("do not match its checksum") >= 4
    assert sorted(several.err.splitlines()) == sorted(one.err.splitlines())

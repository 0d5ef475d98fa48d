"""Workers that die, hang and lie: each costs its own cell one line with a reason, and nothing else."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.forked import Forge
from tests.support import TOY, invoke

RUN = ("run", "--n", "300", "--dataset", "toy/blobs[n=300]", "--defense", "toy/mean", "--threat", "linf:0.08")


def finished(store: Path) -> dict[str, dict[str, str]]:
    return {cell["attack"]: cell for cell in invoke("status", "--store", store, "--json").json["cells"]}


def test_a_dying_hanging_or_raising_worker_costs_its_cell_only(tmp_path: Path) -> None:
    store = tmp_path / "store"
    attacks = "toy/segfaults,toy/shift,toy/exits,toy/raises,toy/hangs,toy/greedy"
    done = invoke(*RUN, "--attack", attacks, "--store", store, "--timeout", 6, "--workers", 2, code=1)
    cells = finished(store)
    assert {name: cell["status"] for name, cell in cells.items()} == {
        "shift": "done",
        "segfaults": "crashed",
        "exits": "crashed",
        "raises": "error",
        "hangs": "timeout",
        "greedy": "error",
    }
    assert "SIGSEGV" in cells["segfaults"]["reason"]
    assert "code 7" in cells["exits"]["reason"]
    assert "ValueError: half way through" in cells["raises"]["reason"]
    assert "longer than 6 s" in cells["hangs"]["reason"]
    assert "declared access 'scores'" in cells["greedy"]["reason"]
    assert "5 of 6 cells failed" in done.err
    again = invoke(*RUN, "--attack", attacks, "--store", store, "--dry-run", "--json").json
    states = {cell["attack"]: (cell["state"], cell["reason"]) for cell in again["cells"]}
    assert states["shift"] == ("cached", "")
    assert states["raises"][0] == "failed"
    assert "half way through" in states["raises"][1]


def test_what_a_raising_attack_had_found_is_kept_and_is_no_score(tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = invoke(*RUN, "--attack", "toy/raises", "--store", store, "--executor", "inline", "--json", code=1)
    from robustbench_lite.store import Store

    (cell,) = Store.open(store, read_only=True).cells()
    salvaged = cell.salvaged()
    assert salvaged is not None
    assert 0 < salvaged["success"].sum() <= 128  # the first half of the first shard of 256
    assert cell.load().status == "error"
    assert all(row["rank"] is None for row in done.json["tables"][0]["rows"])


def test_points_outside_the_threat_model_are_refused_with_a_footnote(tmp_path: Path) -> None:
    done = invoke(*RUN, "--attack", "toy/cheats,toy/shift", "--store", tmp_path / "s", "--executor", "inline")
    assert "outside the threat model" in done.out


def test_a_guessing_defense_fails_fast(tmp_path: Path) -> None:
    run = ("run", "--dataset", "toy/blobs", "--defense", "toy/guessing", "--threat", "linf:0.08", "--attack", "toy/shift")
    done = invoke(*run, "--store", tmp_path / "s", "--executor", "inline", code=1)
    assert "no better than chance" in done.err


def test_output_of_a_plugin_does_not_corrupt_json(tmp_path: Path) -> None:
    for executor in ("inline", "local"):
        done = invoke(*RUN, "--attack", "toy/prints", "--store", tmp_path / executor, "--executor", executor, "--json")
        assert done.json["tables"][0]["rows"][0]["rank"] == 1


@pytest.mark.parametrize(("how", "executor"), [(signal.SIGINT, "local"), (signal.SIGINT, "inline"), (signal.SIGTERM, "local")])
def test_an_interrupted_run_stops_within_seconds_and_says_how_to_go_on(
    tmp_path: Path, forged: Forge, how: signal.Signals, executor: str
) -> None:
    store = tmp_path / "store"
    run = (*RUN, "--attack", "toy/slow[seconds=3],toy/shift", "--store", store, "--workers", 1, "--executor", executor)
    process = forged.run(tmp_path, "--plugin", TOY, *run)
    process.until("[1/2] done    mean x shift")
    deadline = time.monotonic() + 60
    while len(list(store.glob("cells/*/*/attempts/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill(how)
    began = time.monotonic()
    assert process.wait() == 130
    assert time.monotonic() - began < 10
    assert "interrupted: 1 of 2 cells done" in process.said
    assert "finished shards of the others are kept" in process.said
    assert "run the same command again to go on" in process.said
    assert "Traceback" not in process.said
    again = invoke(*run, "--executor", "inline")
    assert "running 1 cell, 2 shards" in again.err
    assert {cell["status"] for cell in finished(store).values()} == {"done"}


def test_results_do_not_depend_on_executor_workers_or_micro_batch(tmp_path: Path) -> None:
    from robustbench_lite.store import Store

    run = ("run", "--dataset", "toy/blobs", "--defense", "toy/mean,toy/noisy-mean", "--threat", "linf:0.02")
    run = (*run, "--attack", "toy/shift,toy/slow[seconds=0]")
    ways = {
        "inline": ("--executor", "inline"),
        "one": ("--workers", 1),
        "two": ("--workers", 2, "--micro-batch", 7),
    }
    found = {}
    for name, way in ways.items():
        invoke(*run, *way, "--store", tmp_path / name)
        found[name] = {r.key: r.arrays for r in Store.open(tmp_path / name, read_only=True).results()}
    assert len(found["inline"]) == 4
    for name in ("one", "two"):
        assert found[name].keys() == found["inline"].keys()
        for key, arrays in found["inline"].items():
            for array, values in arrays.items():
                np.testing.assert_allclose(found[name][key][array], values, rtol=0, atol=1e-5, err_msg=f"{name} {array}")


def test_array_jobs_share_a_store_and_cover_every_cell_once(tmp_path: Path) -> None:
    run = ("run", "--dataset", "toy/blobs[n=300]", "--defense", "toy/mean,toy/mean[scale=2],toy/mean[scale=3]")
    run = (*run, "--threat", "linf:0.08", "--attack", "toy/shift,toy/slow[seconds=0]", "--store", tmp_path / "s")
    parts = [invoke(*run, "--shard", f"{i}/3", "--dry-run", "--json").json["cells"] for i in (1, 2, 3)]
    keys = [cell["key"] for part in parts for cell in part]
    assert len(keys) == len(set(keys)) == 6
    for i in (1, 2, 3):
        if parts[i - 1]:
            invoke(*run, "--shard", f"{i}/3", "--executor", "inline")
    assert invoke(*run, "--dry-run", "--json").json["counts"] == {"cached": 6}


def test_a_minimal_norm_cell_serves_every_size(tmp_path: Path) -> None:
    run = ("run", "--dataset", "toy/blobs", "--defense", "toy/mean", "--attack", "toy/minimal", "--store", tmp_path / "s")
    robust = {}
    for eps in ("0.02", "0.05", "0.11"):
        (table,) = invoke(*run, "--threat", f"linf:{eps}", "--executor", "inline", "--json").json["tables"]
        assert table["threat"]["text"] == f"linf:{eps}"
        robust[eps] = table["rows"][0]["worst_case"]["value"]
    assert len(finished(tmp_path / "s")) == 1
    assert 1 > robust["0.02"] > robust["0.05"] > robust["0.11"]

"""SIGKILL at any moment loses nothing that was whole, and changes no number."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from robustbench_lite.lease import holder, temporary_path
from robustbench_lite.store import Store
from tests.forked import Forge, Run
from tests.support import TOY

RUN = (
    "--plugin", TOY, "run", "--dataset", "toy/blobs", "--n", "600", "--defense", "toy/mean,toy/noisy-mean",
    "--threat", "linf:0.08", "--attack", "toy/slow[seconds=0.05,log=calls.log]", "--store", "store",
)  # fmt: skip
SHARDS = 6  # two cells of 600 examples
Arrays = dict[str, dict[str, np.ndarray]]


def start(forged: Forge, folder: Path, *options: object, **environment: str) -> Run:
    return forged.run(folder, *RUN, *options, **environment)


def calls(folder: Path) -> list[str]:
    """One text for each time that a shard was attacked; the same shard of the same defense gives the same text."""
    log = folder / "calls.log"
    return [line.split()[1] for line in log.read_text().splitlines()] if log.exists() else []


def arrays(folder: Path) -> Arrays:
    store = Store.open(folder / "store", read_only=True)
    assert store.check() == []
    found = {result.key: (result.status, dict(result.arrays)) for result in store.results()}
    assert all(status == "done" for status, _ in found.values())
    return {key: value for key, (_, value) in found.items()}


def whole_shards(folder: Path) -> int:
    if not (folder / "store" / "FORMAT").exists():
        return 0
    store = Store.open(folder / "store", read_only=True)
    return sum(len(cell.state(3).shards) for cell in store.cells())


def until_nobody_works(folder: Path, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while any(holder(cell) for cell in folder.glob("store/cells/*/*") if cell.is_dir()):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.01)


def check(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for key, columns in expected.items():
        for name, values in columns.items():
            np.testing.assert_array_equal(found[key][name], values, err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, forged: Forge) -> tuple[Arrays, dict[str, float]]:
    """The arrays of runs that nobody disturbs, and how long each executor takes."""
    seconds, found = {}, {}
    for executor in ("local", "inline"):
        folder = tmp_path_factory.mktemp(executor)
        began = time.monotonic()
        assert start(forged, folder, "--executor", executor, "--workers", 1).wait() == 0
        seconds[executor] = time.monotonic() - began
        found[executor] = arrays(folder)
        assert len(calls(folder)) == SHARDS
    check(found["local"], found["inline"])
    return found["inline"], seconds


@pytest.mark.parametrize(("executor", "wanted"), [("inline", 17), ("local", 3)])
def test_killed_at_random_moments_and_run_again(
    tmp_path: Path, forged: Forge, uninterrupted: tuple[Arrays, dict[str, float]], executor: str, wanted: int
) -> None:
    expected, seconds = uninterrupted
    moments = random.Random(executor)
    kills, number, folder = 0, 0, tmp_path / "0"
    while kills < wanted:
        before, called = whole_shards(folder), len(calls(folder))
        process = start(forged, folder, "--executor", executor, "--workers", 1)
        time.sleep(moments.uniform(0.1, 1.0) * seconds[executor])
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        until_nobody_works(folder)  # an orphaned worker notices that its parent is gone
        after = whole_shards(folder)
        assert before <= after <= SHARDS, "a whole shard was lost"
        # At most one shard was under way; whatever else was attacked has been kept.
        assert len(calls(folder)) - called <= after - before + 1
        if after == SHARDS:  # finished all the same, or all but its commit: go on with a new store
            assert start(forged, folder, "--executor", "inline").wait() == 0
            check(arrays(folder), expected)
            number += 1
            folder = tmp_path / str(number)
    assert start(forged, folder, "--executor", "inline").wait() == 0
    check(arrays(folder), expected)


def test_two_runs_at_once_compute_no_shard_twice_and_lose_none(
    tmp_path: Path, forged: Forge, uninterrupted: tuple[Arrays, dict[str, float]]
) -> None:
    first = start(forged, tmp_path, "--executor", "inline", TOY_SECONDS="1")
    while not calls(tmp_path):
        time.sleep(0.01)
    both = [first, start(forged, tmp_path, "--executor", "inline", TOY_SECONDS="1")]
    assert [process.wait() for process in both] == [0, 0]
    assert len(calls(tmp_path)) == SHARDS
    check(arrays(tmp_path), uninterrupted[0])
    workers = {line.split()[0] for line in (tmp_path / "calls.log").read_text().splitlines()}
    assert workers == {str(process.pid) for process in both}, "each run took a cell"


def test_a_worker_killed_by_the_system_costs_one_cell_and_the_next_run_repairs_it(
    tmp_path: Path, forged: Forge, uninterrupted: tuple[Arrays, dict[str, float]]
) -> None:
    process = start(forged, tmp_path, "--workers", 1)
    deadline = time.monotonic() + 60
    while not calls(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    worker = int((tmp_path / "calls.log").read_text().split()[0])
    assert worker != process.pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    assert process.wait() == 1
    assert "crashed" in process.said
    assert "SIGKILL" in process.said
    assert "1 of 2 cells failed" in process.said
    assert start(forged, tmp_path, "--executor", "inline").wait() == 0
    check(arrays(tmp_path), uninterrupted[0])


def test_nothing_left_to_do_computes_nothing(tmp_path: Path, forged: Forge) -> None:
    assert start(forged, tmp_path, "--executor", "inline").wait() == 0
    before = len(calls(tmp_path))
    again = start(forged, tmp_path, "--workers", 2)
    assert again.wait() == 0
    assert len(calls(tmp_path)) == before == SHARDS
    assert "nothing left to run: 2 cells stored" in again.said


def test_what_a_writer_left_in_a_finished_cell_goes_with_the_next_run(
    tmp_path: Path, forged: Forge, uninterrupted: tuple[Arrays, dict[str, float]]
) -> None:
    """Killed between the commit of a cell and the end of its record."""
    assert start(forged, tmp_path, "--executor", "inline").wait() == 0
    record = next((tmp_path / "store").glob("cells/*/*/attempts/*.json"))
    writer = temporary_path(record.parent)
    dead = start(forged, tmp_path, "--dry-run")
    assert dead.wait() == 0
    left = writer.with_name(writer.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    left.write_bytes(record.read_bytes()[:10])
    assert start(forged, tmp_path, "--executor", "inline").wait() == 0
    assert not left.exists()
    check(arrays(tmp_path), uninterrupted[0])

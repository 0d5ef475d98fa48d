"""SIGKILL at any moment loses nothing that was whole, and changes no number."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from robustbench_lite.store import Store
from tests.support import command, environment, rbl

RUN = (
    "run", "--dataset", "toy/blobs", "--n", "600", "--defense", "toy/mean,toy/noisy-mean", "--threat", "linf:0.08",
    "--attack", "toy/slow[seconds=0.15,log=calls.log]", "--store", "store",
)  # fmt: skip
SHARDS = 6  # two cells of 600 examples


def run(folder: Path, *options: object) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        command(*RUN, *options), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def calls(folder: Path) -> list[str]:
    """One text for each time that a shard was attacked; the same shard of the same defense gives the same text."""
    log = folder / "calls.log"
    return [line.split()[1] for line in log.read_text().splitlines()] if log.exists() else []


def arrays(folder: Path) -> dict[str, dict[str, np.ndarray]]:
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


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, np.ndarray]], float]:
    """The arrays of a run that nobody disturbs, and how long it takes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    began = time.monotonic()
    process = run(folder)
    assert process.wait(120) == 0
    return arrays(folder), time.monotonic() - began


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_killed_at_random_moments_and_run_again(
    tmp_path: Path, uninterrupted: tuple[dict[str, dict[str, np.ndarray]], float], executor: str
) -> None:
    expected, duration = uninterrupted
    moments = random.Random(f"{executor}")
    kills, number, folder = 0, 0, tmp_path / "0"
    while kills < 10:
        before, called = whole_shards(folder), len(calls(folder))
        process = run(folder, "--executor", executor)
        time.sleep(moments.uniform(0.3, 1.0) * duration)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(60)
        time.sleep(0.2)  # orphaned workers notice that their parent is gone
        after = whole_shards(folder)
        assert before <= after <= SHARDS, "a whole shard was lost"
        # At most one shard per process was under way; whatever else was attacked has been kept.
        assert len(calls(folder)) - called <= after - before + 2
        if after == SHARDS:  # finished all the same: start on a new store
            assert run(folder).wait(120) == 0
            check(arrays(folder), expected)
            number += 1
            folder = tmp_path / str(number)
    assert run(folder).wait(120) == 0
    check(arrays(folder), expected)


def check(found: dict[str, dict[str, np.ndarray]], expected: dict[str, dict[str, np.ndarray]]) -> None:
    assert found.keys() == expected.keys()
    for key, columns in expected.items():
        for name, values in columns.items():
            np.testing.assert_array_equal(found[key][name], values, err_msg=name)


def test_two_runs_at_once_compute_no_shard_twice_and_lose_none(
    tmp_path: Path, uninterrupted: tuple[dict[str, dict[str, np.ndarray]], float]
) -> None:
    both = [run(tmp_path, "--executor", "inline"), run(tmp_path, "--workers", 2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(calls(tmp_path)) == SHARDS
    check(arrays(tmp_path), uninterrupted[0])


def test_a_worker_killed_by_the_system_costs_one_cell_and_the_next_run_repairs_it(
    tmp_path: Path, uninterrupted: tuple[dict[str, dict[str, np.ndarray]], float]
) -> None:
    process = run(tmp_path, "--workers", 1)
    deadline = time.monotonic() + 60
    while not calls(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    worker = int((tmp_path / "calls.log").read_text().split()[0])
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(120) == 1
    assert "crashed" in said
    assert "SIGKILL" in said
    assert run(tmp_path).wait(120) == 0
    check(arrays(tmp_path), uninterrupted[0])


def test_nothing_left_to_do_computes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path).wait(120) == 0
    before = len(calls(tmp_path))
    assert run(tmp_path).wait(120) == 0
    assert len(calls(tmp_path)) == before == SHARDS
    assert rbl("status", "--store", tmp_path / "store").returncode == 0

"""Damaged, read-only and full stores, as a user meets them: a clear message, nothing good is lost, the next run mends it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robustbench_lite.store import Store
from tests.support import environment, invoke

RUN = ("run", "--dataset", "toy/blobs", "--n", "600", "--threat", "linf:0.08", "--defense", "toy/mean", "--executor", "inline")
ROOT = Path(__file__).parents[2]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


HARMS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "flipped byte": ("shard-00001.safetensors", flip),
    "truncated shard": ("shard-00001.safetensors", truncate),
    "missing shard": ("shard-00001.safetensors", Path.unlink),
    "damaged commit": ("done.json", flip),
    "damaged spec": ("spec.json", flip),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one cell of three shards."""
    store = tmp_path_factory.mktemp("sound") / "store"
    invoke(*RUN, "--attack", "toy/slow[seconds=0]", "--store", store)
    return store


def arrays(store: Path) -> dict[str, np.ndarray]:
    (result,) = Store.open(store, read_only=True).results()
    assert result.status == "done"
    return dict(result.arrays)


@pytest.mark.parametrize("harm", HARMS)
def test_harm_is_told_costs_only_what_was_harmed_and_is_mended_by_the_same_command(
    sound: Path, tmp_path: Path, harm: str
) -> None:
    store, log = tmp_path / "store", tmp_path / "calls.log"
    run = (*RUN, "--attack", f"toy/slow[seconds=0,log={log}]", "--store", store)
    invoke(*run)
    expected = arrays(store)
    log.unlink()
    name, damage = HARMS[harm]
    (path,) = store.glob(f"cells/*/*/{name}")
    damage(path)

    reported = invoke("report", "--store", store, "--json", code=1 if harm == "damaged spec" else 0)
    said = invoke("status", "--store", store).out
    if harm != "missing shard":
        assert name in said
    ranked = any(row["rank"] for table in reported.json for row in table["rows"])
    # A table reads the columns that were gathered at the commit, with their own checksum: a byte in a shard changes none of it.
    assert not ranked or harm in ("damaged commit", "flipped byte")
    assert path.exists() or harm == "missing shard", "reading changes nothing"

    again = invoke(*run, "--json")
    assert [row["rank"] for row in again.json["tables"][0]["rows"]] == [1]
    computed = len(log.read_text().splitlines()) if log.exists() else 0
    assert computed == (1 if "shard" in name else 0), "only what is not whole is computed"
    if harm != "missing shard":
        assert name in again.err
        assert list(store.glob(f"quarantine/*/*{name}"))
        assert list(store.glob(f"quarantine/*/*{name}.reason.txt"))
    for column, values in expected.items():
        np.testing.assert_array_equal(arrays(store)[column], values)


def test_a_store_of_another_format_is_left_alone(sound: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(sound, store)
    for text in ("robustbench-lite store 2\n", "something else\n"):
        (store / "FORMAT").write_text(text)
        before = sorted(store.rglob("*"))
        for line in (
            (*RUN, "--attack", "toy/shift"),
            ("report",),
            ("status",),
            ("plan", "--dataset", "toy/blobs", "--threat", "l2:1"),
        ):
            done = invoke(*line, "--store", store, code=2)
            assert str(store) in done.err
        assert sorted(store.rglob("*")) == before


FULL = """
import subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.support import invoke
from robustbench_lite.store import Store

store, executor = Path(sys.argv[1]) / "store", sys.argv[3]
run = ("run", "--dataset", "toy/blobs", "--n", "600", "--threat", "linf:0.08", "--defense", "toy/mean", "--store", store)
few = invoke(*run, "--attack", "toy/shift", "--executor", "inline")
Path(sys.argv[1], "ballast").write_bytes(bytes(1 << 20)[: int(sys.argv[4])])
attacks = ",".join(f"toy/slow[seconds={i}e-9]" for i in range(1, 7))
full = invoke(*run, "--attack", "toy/shift," + attacks, "--executor", executor, "--workers", "1", code=1)
assert "no room to write" in full.err, full.err
assert "free some space or raise the quota" in full.err, full.err
assert "cells failed" in full.err, full.err
done = {r.key for r in Store.open(store, read_only=True).results() if r.status == "done"}
assert 1 <= len(done) < 7, done
Path(sys.argv[1], "ballast").unlink()
again = invoke(*run, "--attack", "toy/shift," + attacks, "--executor", "inline", "--json").json
assert len(again["finished"]) == 7 - len(done)
assert {value["status"] for value in again["finished"].values()} == {"done"}
assert not done & set(again["finished"])
assert Store.open(store).check() == []
"""

READ_ONLY = """
import subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.support import invoke

store = Path(sys.argv[1]) / "store"
run = ("run", "--dataset", "toy/blobs", "--n", "300", "--threat", "linf:0.08", "--defense", "toy/mean", "--store", store)
first = invoke(*run, "--attack", "toy/shift", "--executor", "inline")
table = invoke("report", "--store", store, "--json").json
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
refused = invoke(*run, "--attack", "toy/shift,toy/slow", "--executor", "inline", code=1)
assert "no permission to read or write" in refused.err, refused.err
assert "fix: use a store in a folder that you may write to" in refused.err, refused.err
assert invoke("report", "--store", store, "--json").json == table
assert invoke("plan", *run[1:], "--attack", "toy/shift,toy/slow", "--json").json["counts"] == {"cached": 1, "run": 1}
assert "1 cell, 1 done" in invoke("status", "--store", store).out
"""


@pytest.mark.parametrize(
    ("body", "executor"), [(FULL, "inline"), (FULL, "local"), (READ_ONLY, "")], ids=["full", "full-local", "read-only"]
)
def test_on_a_small_disk_of_its_own(tmp_path: Path, body: str, executor: str) -> None:
    """In a mount namespace of its own, so that nothing stays mounted whatever happens."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mount = [*unshare, "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"', str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    ballast = 1024 * (1024 - 300)
    script = [sys.executable, "-c", body, str(tmp_path), str(ROOT), executor, str(ballast)]
    done = subprocess.run([*mount, *script], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr

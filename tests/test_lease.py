from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_lite import lease as module
from robustbench_lite.errors import StoreError
from robustbench_lite.lease import Lease, Process, holder, remove_leftovers, temporary_path, write_file

PRELUDE = """
import sys, time
from pathlib import Path
from robustbench_lite.lease import Lease
folder = Path(sys.argv[1])
"""
HOLDER = "lease = Lease.acquire(folder); print(lease is not None, flush=True); time.sleep(60)"


def script(body: str, *args: object) -> subprocess.Popen[str]:
    code = [sys.executable, "-c", PRELUDE + textwrap.dedent(body), *map(str, args)]
    return subprocess.Popen(code, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def written(folder: Path, **changes: Any) -> None:
    """A lease as another process would have left it."""
    process = Process.current().to_json() | {k: changes.pop(k) for k in list(changes) if k in Process.current().to_json()}
    record = {"nonce": "other", "heartbeat": time.time(), "ttl": 120.0, "process": process} | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lease.json").write_text(json.dumps(record))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cells" / "ab" / ("ab" + "0" * 62)


def test_one_holder_at_a_time(folder: Path) -> None:
    assert holder(folder) is None
    first = Lease.acquire(folder)
    assert first is not None
    assert Lease.acquire(folder) is None
    text = holder(folder)
    assert text is not None
    assert f":{os.getpid()}, 0 s ago" in text
    assert not first.lost
    first.release()
    first.release()
    assert holder(folder) is None
    second = Lease.acquire(folder)
    assert second is not None
    assert first.lost
    with second:
        assert holder(folder) is not None
    assert holder(folder) is None
    assert not (folder / "lease.json").exists()


def test_a_lease_is_given_back_when_work_raises(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lease.acquire(folder):  # type: ignore[union-attr]
        raise ZeroDivisionError
    assert holder(folder) is None


def test_a_killed_holder_frees_the_cell_at_once(folder: Path) -> None:
    other = script(HOLDER, folder)
    assert line(other) == "True"
    assert Lease.acquire(folder) is None
    assert f":{other.pid}, " in (holder(folder) or "")
    other.send_signal(signal.SIGKILL)
    until(lambda: Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert holder(folder) is None  # dead, though nobody has waited for it yet
    lease = Lease.acquire(folder)
    assert lease is not None
    lease.release()
    other.communicate()


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({}, False),
        ({"started": 1}, True),  # the pid was given to another process since
        ({"started": None}, False),
        ({"pid": 2**22 + 1, "started": 5}, True),  # above the largest pid there can be
        ({"heartbeat": time.time() - 3600}, True),
        ({"heartbeat": time.time() + 3600}, True),  # a clock set wrong must not block for ever
        ({"heartbeat": float("nan")}, True),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "pid": 2**22 + 1}, False),  # cannot be looked up from here
        ({"boot_id": "before"}, False),
        ({"host": "elsewhere", "heartbeat": time.time() - 3600}, True),
        ({"host": "elsewhere", "heartbeat": time.time() - 3600, "ttl": 7200}, False),  # its own ttl counts
    ],
)
def test_when_a_lease_is_stale(folder: Path, changes: dict[str, Any], free: bool) -> None:
    written(folder, **changes)
    assert (holder(folder) is None) == free
    lease = Lease.acquire(folder)
    assert (lease is not None) == free
    if lease is not None:
        assert not lease.lost
        lease.release()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"nonce": 1}', "null", "\x00\x00"])
def test_a_lease_that_cannot_be_read_is_none(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "lease.json").write_text(text)
    assert holder(folder) is None
    with Lease.acquire(folder) as lease:  # type: ignore[union-attr]
        assert not lease.lost


def test_without_proc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_proc_stat", lambda pid: None)
    assert Process.current().started is None
    written(folder, pid=2**22 + 1)
    assert holder(folder) is None
    written(folder, pid=os.getpid(), started=None)
    assert holder(folder) is not None
    written(folder, pid=1, started=None)  # not ours to signal, perhaps, but there
    assert holder(folder) is not None


def test_the_heartbeat_keeps_a_lease(folder: Path) -> None:
    lease = Lease.acquire(folder, ttl=0.6, heartbeat=0.05)
    assert lease is not None
    ends = time.monotonic() + 1.5
    while time.monotonic() < ends:
        assert Lease.acquire(folder) is None
        time.sleep(0.05)
    assert not lease.lost
    lease.release()


def test_a_failing_disk_does_not_end_the_heartbeat(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[int] = []

    def full(path: Path, data: bytes, *, durable: bool = True) -> None:
        failures.append(1)
        raise StoreError("no room")

    lease = Lease.acquire(folder, ttl=30, heartbeat=0.02)
    assert lease is not None
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_file", full)
        until(lambda: len(failures) > 2)
    before = (folder / "lease.json").read_text()
    until(lambda: (folder / "lease.json").read_text() != before)
    assert not lease.lost
    lease.release()


def test_a_suspended_holder_loses_its_lease_and_leaves_the_new_one_alone(folder: Path) -> None:
    body = """
    lease = Lease.acquire(folder, ttl=0.5, heartbeat=0.05)
    print(lease is not None, flush=True)
    sys.stdin.readline()
    print(lease.lost, flush=True)
    time.sleep(0.2)  # some heartbeats
    lease.release()
    print("released", flush=True)
    """
    other = script(body, folder)
    assert line(other) == "True"
    other.send_signal(signal.SIGSTOP)
    until(lambda: holder(folder) is None)
    taken = Lease.acquire(folder)
    assert taken is not None
    other.send_signal(signal.SIGCONT)
    assert other.stdin is not None
    other.stdin.write("\n")
    other.stdin.flush()
    assert line(other) == "True"
    assert line(other) == "released"
    assert not taken.lost
    assert holder(folder) is not None
    taken.release()
    other.communicate()


def test_lost_when_the_file_is_gone(folder: Path) -> None:
    lease = Lease.acquire(folder)
    assert lease is not None
    (folder / "lease.json").unlink()
    assert lease.lost
    lease.release()


def test_threads_exclude_each_other_too(folder: Path) -> None:
    written(folder, pid=2**22 + 1)
    barrier, won = threading.Barrier(8), []

    def race() -> None:
        barrier.wait()
        if (lease := Lease.acquire(folder)) is not None:
            won.append(lease)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].release()


def test_a_stale_lease_is_taken_over_by_exactly_one_of_four(tmp_path: Path) -> None:
    rounds = 10
    for i in range(rounds):
        written(tmp_path / str(i) / "cell", pid=2**22 + 1)
    body = """
    print("ready", flush=True)
    start = float(sys.stdin.readline())
    won = []
    for i in range(int(sys.argv[2])):
        while time.time() < start + i / 10:
            pass
        if (lease := Lease.acquire(folder / str(i) / "cell")) is not None:
            won.append((i, lease))
    print(*(i for i, _ in won), flush=True)
    sys.stdin.readline()  # holds what it won until all are through
    """
    racers = [script(body, tmp_path, rounds) for _ in range(4)]
    assert {line(racer) for racer in racers} == {"ready"}
    start = time.time() + 0.2
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(f"{start}\n")
        racer.stdin.flush()
    won = [int(i) for racer in racers for i in line(racer).split()]
    for racer in racers:
        racer.communicate("\n")
    assert sorted(won) == list(range(rounds))


def test_two_processes_compute_each_cell_once(tmp_path: Path) -> None:
    body = """
    import numpy as np
    from robustbench_lite.store import Store
    store = Store.open(folder)
    print("ready", flush=True)
    sys.stdin.readline()
    waiting = list(range(15))
    while waiting:
        for i in list(waiting):
            cell = store.cell({"i": i})
            if cell.state(1).status == "done":
                waiting.remove(i)
                continue
            lease = Lease.acquire(cell.folder)
            if lease is None:
                continue
            with lease:
                if cell.state(1).status != "done":  # it may have been finished while this process waited
                    time.sleep(0.02)
                    with open(folder.parent / "computed", "a") as log:
                        log.write(f"{i} {sys.argv[2]}\\n")
                    cell.write_shard(0, {"index": np.arange(3)}, n=3)
                    cell.commit(1)
    """
    workers = [script(body, tmp_path / "store", name) for name in ("one", "two")]
    assert [line(worker) for worker in workers] == ["ready", "ready"]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate()
        assert worker.returncode == 0
    computed = [text.split() for text in (tmp_path / "computed").read_text().splitlines()]
    assert sorted(int(i) for i, _ in computed) == list(range(15))
    assert {name for _, name in computed} == {"one", "two"}
    assert not list((tmp_path / "store").rglob("lease.json"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_flock(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreError, match="cannot lock") as caught:
        Lease.acquire(folder)
    assert "flock" in caught.value.hint


def test_a_system_without_flock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fcntl", None)
    with pytest.raises(StoreError, match="flock"):
        Lease.acquire(folder)


def test_a_lock_that_is_never_freed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    with open(folder.parent / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="locked") as caught:
            Lease.acquire(folder)
    assert "suspended" in caught.value.hint
    with Lease.acquire(folder) as lease:  # type: ignore[union-attr]
        assert not lease.lost


@pytest.mark.parametrize(("ttl", "heartbeat"), [(10, 10), (1, 2), (1, 0), (1, -1)])
def test_a_heartbeat_must_be_shorter_than_the_ttl(folder: Path, ttl: float, heartbeat: float) -> None:
    with pytest.raises(ValueError, match="heartbeat"):
        Lease.acquire(folder, ttl=ttl, heartbeat=heartbeat)
    assert not folder.exists()


def test_processes_survive_json() -> None:
    me = Process.current()
    assert Process.from_json(json.loads(json.dumps(me.to_json()))) == me
    assert me.alive() is True
    assert str(me) == f"{me.host}:{os.getpid()}"


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    mine = temporary_path(tmp_path)
    machine = mine.name.split("-")[1]
    dead = tmp_path / f".tmp-{machine}-{child.pid}-abcd"
    foreign_new, foreign_old = tmp_path / ".tmp-00000000-1-abcd", tmp_path / ".tmp-00000000-2-abcd"
    odd = tmp_path / ".tmp-from-something-else"
    result = tmp_path / "result"
    for path in (mine, dead, foreign_new, foreign_old, odd, result):
        path.write_text("")
    for path in (foreign_old, result):
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {mine, foreign_new, odd, result}
    remove_leftovers(tmp_path / "nowhere")


@pytest.mark.parametrize("durable", [True, False])
def test_write_file_replaces_wholly(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    write_file(path, b"first", durable=durable)
    write_file(path, b"second", durable=durable)
    assert path.read_bytes() == b"second"
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="in the way"):
        write_file(tmp_path / "folder", b"", durable=durable)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}

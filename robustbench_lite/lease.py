"""Who is at work on a shared store: processes, the files that they replace atomically, and their leases on cells.

A lease is a file, ``lease.json``, in a cell's folder. It is read and changed only under ``flock`` on a file beside that folder,
for a moment; the lease itself outlasts the lock and is kept alive by a heartbeat. A holder that was killed frees its cells at
once for processes on its machine (its pid is dead) and after ``ttl`` seconds for all others, so hosts that share a store need
clocks that agree within a minute or so. Two holders at once would waste time but spoil nothing: shards are replaced atomically.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from robustbench_lite.errors import StoreError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LEASE = "lease.json"
LOCK = "lock"
PATIENCE = 30.0  # seconds to wait for a lock that is only ever held for milliseconds
FOREIGN_AGE = 3600.0  # seconds after which a temporary file of a process that cannot be looked up counts as left over

_TEMPORARY = re.compile(r"\.tmp-(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]+")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process, named so that a later one with the same number is not mistaken for it.

    host, boot_id and namespace (of process numbers, which containers have their own) name the machine; they are empty where
    the system does not tell. started is the start time in clock ticks since boot, None where there is no ``/proc``.
    """

    host: str
    boot_id: str
    namespace: str
    pid: int
    started: int | None

    @classmethod
    def current(cls) -> Process:
        """The process that asks."""
        host, boot_id, namespace = _machine()
        stat = _proc_stat(os.getpid())
        return cls(host=host, boot_id=boot_id, namespace=namespace, pid=os.getpid(), started=stat[1] if stat else None)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Process:
        """Read back what ``to_json`` gave; raises KeyError, TypeError or ValueError for anything else."""
        started = data["started"]
        return cls(
            host=str(data["host"]),
            boot_id=str(data["boot_id"]),
            namespace=str(data["namespace"]),
            pid=int(data["pid"]),
            started=None if started is None else int(started),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``lease.json`` and the records of attempts."""
        return asdict(self)

    def alive(self) -> bool | None:
        """Whether it still runs; None for a process of another machine, which cannot be looked up from here."""
        if (self.host, self.boot_id, self.namespace) != _machine():
            return None
        return _alive(self.pid, self.started)

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


@functools.cache
def _machine() -> tuple[str, str, str]:
    boot_id = namespace = ""
    with contextlib.suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return socket.gethostname(), boot_id, namespace


@functools.cache
def _machine_digits() -> str:
    """Eight hexadecimal digits that stand for the machine in file names."""
    return hashlib.sha256("\n".join(_machine()).encode()).hexdigest()[:8]


def _proc_stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process from ``/proc``; None where it is not listed there."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold blanks and brackets
    return fields[0], int(fields[19])


def _alive(pid: int, started: int | None) -> bool:
    """Whether a process of that number (and start time, where known) runs on this machine."""
    stat = _proc_stat(pid)
    if stat is not None:
        return stat[0] not in "ZX" and started in (None, stat[1])
    try:
        os.kill(pid, 0)  # there may be no /proc, or it may hide other users' processes
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


# Files


def storage_error(error: OSError, path: Path, size: int | None = None) -> StoreError:
    """Say in words, with a hint, why ``path`` could not be read or written (``size`` bytes were to be written)."""
    if error.errno in _FULL:
        free = "unknown"
        with contextlib.suppress(OSError):
            free = f"{shutil.disk_usage(path.parent).free:,} bytes"
        needed = "" if size is None else f": {size:,} bytes needed"
        return StoreError(
            f"no room to write {path}{needed}, {free} free there ({error.strerror})",
            hint="free some space or raise the quota, then run the same command again; everything stored so far is kept",
        )
    if error.errno in _REFUSED:
        return StoreError(
            f"no permission to read or write {path} ({error.strerror})",
            hint="use a store in a folder that you may write to, or change the permissions",
        )
    if error.errno in _IN_THE_WAY:
        return StoreError(f"something is in the way at {path} ({error.strerror})", hint="move it elsewhere")
    return StoreError(f"cannot read or write {path} ({error.strerror or error})")


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably; raises StoreError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut; raises StoreError. File systems that cannot are left alone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise storage_error(error, path) from error
    finally:
        os.close(descriptor)


def temporary_path(folder: Path) -> Path:
    """A new name in a folder for a file that is not finished, or only there to see whether it can be."""
    return folder / f".tmp-{_machine_digits()}-{os.getpid()}-{secrets.token_hex(4)}"


def is_temporary(name: str) -> bool:
    """Whether a file of that name is one that ``write_file`` has not finished."""
    return name.startswith(".tmp-")


def write_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put ``data`` at ``path``, wholly or not at all; raises StoreError and leaves what was there before.

    durable: it also survives a power cut once this returns.
    """
    temporary = temporary_path(path.parent)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _discard(temporary)
        raise storage_error(error, path, len(data)) from error
    except BaseException:
        _discard(temporary)
        raise
    if durable:
        sync_folder(path.parent)


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):  # on the way out of an error that matters more
        path.unlink()


def remove_file(path: Path) -> None:
    """Remove a file that may be gone already; raises StoreError where it cannot be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder whose writers are dead; those of other machines after an hour."""
    if folder.is_dir():
        for path in folder.glob(".tmp-*"):
            if _left_over(path):
                remove_file(path)


def _left_over(path: Path) -> bool:
    match = _TEMPORARY.fullmatch(path.name)
    if match and match["machine"] == _machine_digits():
        return not _alive(int(match["pid"]), None)
    try:
        return time.time() - path.stat().st_mtime > FOREIGN_AGE
    except FileNotFoundError:
        return False


# Leases


class Lease:
    """The right to work on a cell, held by one process at a time; a context manager that gives it back.

    Made by ``Lease.acquire``. A daemon thread rewrites ``lease.json`` every ``heartbeat`` seconds until ``release``.
    """

    def __init__(self, folder: Path, *, ttl: float, heartbeat: float) -> None:
        self.folder = folder
        self._ttl = ttl
        self._heartbeat = heartbeat
        self._nonce = secrets.token_hex(8)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name=f"lease {folder.name[:8]}", daemon=True)

    @classmethod
    def acquire(cls, cell_folder: Path, *, ttl: float = 120.0, heartbeat: float = 10.0) -> Lease | None:
        """Lease a cell, or None where a live process holds it. The folder is made where it is missing.

        ttl: seconds without a heartbeat after which others may take the lease over. heartbeat: seconds between two. Raises
        StoreError where the folder cannot be written or its file system has no ``flock``.
        """
        if not 0 < heartbeat < ttl:
            raise ValueError(f"heartbeat ({heartbeat}) must be shorter than ttl ({ttl})")
        make_folder(cell_folder)
        lease = cls(cell_folder, ttl=ttl, heartbeat=heartbeat)
        with _locked(cell_folder):
            record = _read(cell_folder)
            if record is not None and not record.stale():
                return None
            lease._write()
        lease._thread.start()
        return lease

    @property
    def lost(self) -> bool:
        """Whether the lease is another's by now, or gone. Ask before storing what took long to compute."""
        record = _read(self.folder)
        return record is None or record.nonce != self._nonce

    def release(self) -> None:
        """Give the lease back, unless it was taken over. Calling it again does nothing."""
        self._stop.set()
        self._thread.join()
        with _locked(self.folder):
            if not self.lost:
                remove_file(self.folder / LEASE)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _write(self) -> None:
        record = {"nonce": self._nonce, "heartbeat": time.time(), "ttl": self._ttl, "process": Process.current().to_json()}
        # Not durable: after a power cut its holder is dead, and an unreadable lease counts as none.
        write_file(self.folder / LEASE, json.dumps(record, indent=1).encode(), durable=False)

    def _keep_alive(self) -> None:
        while not self._stop.wait(self._heartbeat):
            try:
                with _locked(self.folder):
                    if self.lost:
                        return
                    self._write()
            except StoreError as error:  # a full disk or a file server that is away: the next heartbeat may get through
                log.warning("no heartbeat for %s: %s", self.folder.name, error.message)


def holder(cell_folder: Path) -> str | None:
    """Who is working on a cell, for people (``"host:4711, 12 s ago"``); None where nobody is."""
    record = _read(cell_folder)
    if record is None or record.stale():
        return None
    return f"{record.process}, {max(0, round(time.time() - record.heartbeat))} s ago"


@dataclass(frozen=True, kw_only=True)
class _Record:
    """The contents of ``lease.json``."""

    nonce: str
    heartbeat: float
    ttl: float
    process: Process

    def stale(self) -> bool:
        # A heartbeat from the future is a clock set wrong; trusting it could block the cell for ever.
        return self.process.alive() is False or not abs(time.time() - self.heartbeat) <= self.ttl


def _read(folder: Path) -> _Record | None:
    """The lease on a cell; None where there is none, or none that can be read."""
    path = folder / LEASE
    try:
        data = json.loads(path.read_bytes())
        return _Record(
            nonce=str(data["nonce"]),
            heartbeat=float(data["heartbeat"]),
            ttl=float(data["ttl"]),
            process=Process.from_json(data["process"]),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    except OSError as error:
        raise storage_error(error, path) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes (and threads) from reading and changing leases beside this one."""
    path = folder.parent / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        _flock(descriptor, path)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # not left to close(): a forked child may hold a copy of the descriptor
    finally:
        os.close(descriptor)


def _flock(descriptor: int, path: Path) -> None:
    if fcntl is None:
        raise StoreError("leases need flock, which this system does not have", hint="run on Linux or macOS")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{path} has been locked for {PATIENCE:.0f} s by a process that does not go on",
                    hint="look for a suspended process that uses this store (`fuser` names it) and end it",
                ) from None
            time.sleep(0.005)
        except OSError as error:
            raise StoreError(
                f"cannot lock {path} ({error.strerror})",
                hint="the file system has no flock: mount it with locking, or keep the store on a local disk",
            ) from error

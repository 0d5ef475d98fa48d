"""One cell of the store: what was asked, and the files of what came of it. The layout is in ``store.py``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from robustbench_lite import columns, incoming
from robustbench_lite.attempt import ATTEMPT, Attempt, check_outcome, outcome
from robustbench_lite.contents import (
    FORMAT,
    Arrays,
    Damaged,
    names_in,
    now,
    pack,
    read_bytes,
    rows_of,
    seal,
    unpack,
    unseal,
)
from robustbench_lite.errors import CorruptResult, InvalidParameter, StoreError
from robustbench_lite.keys import SharedParts
from robustbench_lite.lease import (
    Process,
    make_folder,
    remove_file,
    remove_leftovers,
    storage_error,
    write_file,
)
from robustbench_lite.provenance import Origin
from robustbench_lite.results import CellResult

if TYPE_CHECKING:
    from robustbench_lite.store import Store

CELLS, MEASURES = "cells", "measures"  # folders: results of attacks, of metrics
RERUN = "run the same `rbl run` command again: it sets the damaged file aside and computes only what is missing"

SHARD = re.compile(r"shard-(\d{5,})\.safetensors")
SALVAGE = re.compile(r"shard-(\d{5,})\.salvage\.safetensors")


@dataclass(frozen=True, kw_only=True)
class CellState:
    """How far a cell is.

    status: ``done``, ``partial`` (some shards are whole), ``new`` (none is), or how the last attempt failed (``error``,
    ``timeout``, ``out-of-memory``, ``crashed``). shards: the numbers of those that are whole and need not be computed again.
    """

    status: str
    shards: frozenset[int] = frozenset()
    reason: str = ""
    attempts: int = 0


@dataclass(frozen=True, kw_only=True)
class _Commit:
    """The contents of ``done.json``: n examples in n_shards shards, (bytes, sha256) by file name, and arrays' types by name."""

    raw: bytes
    n: int
    n_shards: int
    files: Mapping[str, tuple[int, str]]
    types: Mapping[str, str]

    @classmethod
    def of(cls, record: Mapping[str, Any], raw: bytes) -> _Commit:
        """Raises KeyError, TypeError, ValueError or AttributeError for a record of something else."""
        files = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in record["files"].items()}
        types = {str(name): str(dtype) for name, dtype in record.get("arrays", {}).items()}
        return cls(raw=raw, n=record["n"], n_shards=record["n_shards"], files=files, types=types)


@dataclass(frozen=True, kw_only=True)
class _Shard:
    arrays: dict[str, np.ndarray]
    size: int
    sha256: str

    def fits(self, other: _Shard) -> bool:
        """Whether the two can be joined: arrays of one type, where later versions may store more of them."""
        mine, theirs = self._layout(), other._layout()
        return mine.items() <= theirs.items() or theirs.items() <= mine.items()

    def _layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {name: (array.dtype.name, array.shape[1:]) for name, array in self.arrays.items()}


class Cell:
    """One cell or measurement of a store: a spec and what is stored of it. Nothing is written before the first ``write_...``.

    damage lists what this object found unreadable. All methods raise StoreError where the disk fails them, and those that write
    where the store was opened for reading.
    """

    def __init__(self, store: Store, key: str, spec: Mapping[str, Any], place: str = CELLS) -> None:
        self.store = store
        self.key = key
        self.spec = spec
        self.folder = store.path / place / key[:2] / key
        self.examples_folder = store.path / "examples" / key[:2] / key
        self.damage: list[str] = []

    def __repr__(self) -> str:
        return f"<Cell {self.key[:12]} in {self.store.path}>"

    # Reading

    def state(self, n_shards: int, *, verify: bool = False) -> CellState:
        """How far the cell is. A commit holds when its files have their sizes; verify: and their contents."""
        attempts = self._attempt_paths()
        if self._committed(n_shards) and (not verify or self._verified() is not None):
            return CellState(status="done", shards=frozenset(range(n_shards)), attempts=len(attempts))
        shards = frozenset(i for i in self._whole_shards() if i < n_shards)
        status, reason = outcome(self._read_attempts(attempts[-1:]))
        return CellState(
            status=status or ("partial" if shards else "new"), shards=shards, reason=reason, attempts=len(attempts)
        )

    def load(self) -> CellResult:
        """All that is stored of the cell, with every checksum verified.

        Of a cell that is not done, the arrays are those of its whole shards, and the status is how the last attempt failed,
        ``partial`` where none did, or ``missing`` where nothing was ever tried. Raises CorruptResult for a damaged file in a
        store opened for reading; otherwise that file is quarantined and what remains is returned.
        """
        before = len(self.damage)
        result = self.load_what_is_whole()
        if self.store.read_only and len(self.damage) > before:
            raise CorruptResult(self.damage[before], hint=RERUN)
        return result

    def load_what_is_whole(self) -> CellResult:
        """As ``load``, but damage costs only the damaged, also in a store opened for reading; see ``damage``."""
        return self._load(self._verified)

    def load_for_tables(self) -> CellResult:
        """As ``load_what_is_whole``, but of a committed cell most arrays are read and verified when they are asked for.

        Those that tables read come from one small file with its own checksum, which stands for shards of the right size. Damage
        inside them shows when other arrays are asked for, which raises CorruptResult, to ``check``, and when the cell is run.
        """
        return self._load(lambda: self._columns() or self._verified())

    def _load(self, committed: Callable[[], Arrays | None]) -> CellResult:
        before = len(self.damage)
        paths = self._attempt_paths()
        attempts = self._read_attempts(paths)
        arrays, status, reason = committed(), "done", ""
        if arrays is None:
            self._spec_on_disk()
            arrays = _join([shard.arrays for shard in self._whole_shards().values()])
            status, reason = outcome(attempts)
            status = status or ("partial" if arrays or paths else "missing")
            reason = "; ".join([reason] * bool(reason) + self.damage[before:])
        chosen = [a for a in attempts if a["status"] == "done"] or attempts
        return CellResult(
            key=self.key,
            spec=self.spec,
            arrays=arrays,
            status=status,
            reason=reason,
            seconds=sum(a["seconds"] for a in attempts),
            attempts=len(paths),
            environment=chosen[-1]["environment"] if chosen else {},
        )

    def read_shard(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of one shard; raises CorruptResult where it is damaged, StoreError where it is not stored."""
        return self._read_one(self._shard_path(number), "shard", number)

    def has_shard(self, number: int) -> bool:
        """Whether there is a file of that shard, whatever is in it."""
        return self._shard_path(number).exists()

    def has_examples(self, number: int) -> bool:
        """Whether images of that shard were kept."""
        return self._examples_path(number).exists()

    def read_examples(self, number: int) -> dict[str, np.ndarray]:
        """The images kept of one shard: ``index``, clean ``x`` and adversarial ``x_adv``, the clean ones where none was found.

        Raises CorruptResult, or StoreError where none were kept.
        """
        return self._read_one(self._examples_path(number), "examples", number)

    def examples(self) -> Iterator[dict[str, np.ndarray]]:
        """The examples kept of each shard, in order; damaged files are noted and passed over."""
        for name in names_in(self.examples_folder):
            if match := SHARD.fullmatch(name):
                with contextlib.suppress(CorruptResult):
                    yield self.read_examples(int(match[1]))

    def salvaged(self) -> dict[str, np.ndarray] | None:
        """What failed runs found in shards that are not whole, joined in shard order: for footnotes, never for scores."""
        found = []
        whole = {name for name in names_in(self.folder) if SHARD.fullmatch(name)}
        for name in names_in(self.folder):
            match = SALVAGE.fullmatch(name)
            if match and self._shard_path(int(match[1])).name not in whole:
                with contextlib.suppress(CorruptResult):
                    found.append(self._read_one(self.folder / name, "salvage", int(match[1])))
        return _join(found) or None

    @property
    def origin(self) -> Origin | None:
        """Where an imported result comes from, and what a check of it found; None for one that was run here."""
        data = read_bytes(self.folder / incoming.ORIGIN)
        if data is None:
            return None
        try:
            record = unseal(data)
            return Origin.model_validate({key: value for key, value in record.items() if key != "format"})
        except (Damaged, ValidationError):  # not set aside: without it, the result would count as run here
            return Origin(problem="the record of where it comes from cannot be read")

    # Writing

    def write_origin(self, origin: Origin) -> None:
        """Mark the cell as imported, or store what a check of it found."""
        self.store.require_writable()
        make_folder(self.folder)
        write_file(self.folder / incoming.ORIGIN, seal({"format": FORMAT, **origin.model_dump()}))

    def write_attempt(self, environment: Mapping[str, Any], seconds: float) -> None:
        """Record an attempt that was made elsewhere and succeeded."""
        self.write_spec()
        attempt = self.begin_attempt(environment)
        attempt.finish("done", seconds=seconds)

    def write_spec(self) -> None:
        """Store what was asked, where it is not stored already."""
        self.store.require_writable()
        if not self._spec_on_disk():
            make_folder(self.folder)
            write_file(self.folder / "spec.json", (json.dumps(self.spec, indent=2, sort_keys=True) + "\n").encode())

    def write_shard(self, number: int, arrays: Arrays, *, n: int | None = None) -> None:
        """Store the per-example arrays of one shard. n: how many rows each must have; raises ValueError otherwise.

        Replaces what was stored of it. Where that differs, a commit is withdrawn first.
        """
        if n not in (None, rows_of(arrays)):
            raise ValueError(f"shard {number} has {rows_of(arrays)} rows, {n} expected")
        self.write_spec()
        path, data = self._shard_path(number), pack(arrays, kind="shard", key=self.key, number=number)
        if read_bytes(path) != data:
            self._uncommit()
            write_file(path, data)
        remove_file(self._salvage_path(number))

    def write_salvage(self, number: int, arrays: Arrays) -> None:
        """Store what the target saw found in a shard that failed; it goes when the shard is written."""
        self.write_spec()
        write_file(self._salvage_path(number), pack(arrays, kind="salvage", key=self.key, number=number))

    def write_examples(self, number: int, arrays: Arrays) -> None:
        """Store the adversarial examples of one shard; they are no part of the commit."""
        self.store.require_writable()
        make_folder(self.examples_folder)
        write_file(self._examples_path(number), pack(arrays, kind="examples", key=self.key, number=number))

    def commit(self, n_shards: int) -> None:
        """Declare the cell done, once shards 0 to n_shards - 1 are verified. Raises StoreError where they are not whole."""
        if n_shards < 1:
            raise ValueError(f"a cell has at least one shard, not {n_shards}")
        self.write_spec()
        shards = self._whole_shards()
        if sorted(shards) != list(range(n_shards)):
            raise StoreError(
                f"cell {self.key[:12]} cannot be done: {n_shards} shards asked for, whole are {sorted(shards) or 'none'}",
                hint=RERUN,
            )
        spec = (self.folder / "spec.json").read_bytes()
        files = {"spec.json": {"bytes": len(spec), "sha256": hashlib.sha256(spec).hexdigest()}}
        files |= {self._shard_path(i).name: {"bytes": s.size, "sha256": s.sha256} for i, s in sorted(shards.items())}
        n = sum(rows_of(shard.arrays) for shard in shards.values())
        types = {name: array.dtype.name for name, array in sorted(shards[0].arrays.items())}
        record = {"format": FORMAT, "key": self.key, "committed": now(), "n": n, "n_shards": n_shards, "files": files}
        write_file(self.folder / "done.json", done := seal(record | {"arrays": types}))
        found = columns.narrowed(_join([shards[i].arrays for i in range(n_shards)]))
        if found:
            with contextlib.suppress(StoreError):  # the cell is committed; without this file, tables read the shards
                write_file(self.folder / columns.NAME, pack(found, kind="columns", key=_identity(done), number=0))

    def begin_attempt(self, environment: Mapping[str, Any]) -> Attempt:
        """Record that this process starts to work on the cell, and tidy up after those that died at it."""
        self.write_spec()
        folder = self.folder / "attempts"
        make_folder(folder)
        attempt = Attempt(folder, environment)
        self.end_attempts("crashed", "the process ended without a report")
        self.tidy_up()
        return attempt

    def tidy_up(self) -> None:
        """Remove what writers left unfinished that are dead."""
        for place in (self.folder, self.folder / "attempts", self.examples_folder):
            remove_leftovers(place)

    def end_attempts(self, status: str, reason: str, *, pid: int | None = None) -> int:
        """Record how attempts ended whose process is dead and left them ``running``; returns how many there were.

        For a parent that saw a worker die: until somebody says so, such attempts count as interrupted, not as failed. pid:
        only attempts of that process.
        """
        self.store.require_writable()
        check_outcome(status)
        ended = 0
        for path in self._attempt_paths():
            for record in self._read_attempts([path]):
                process = Process.from_json(record["process"])
                if record["status"] == "running" and process.alive() is False and pid in (None, process.pid):
                    write_file(path, seal(record | {"status": status, "reason": reason, "finished": now()}))
                    ended += 1
        return ended

    # Inside

    def _shard_path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.safetensors"

    def _salvage_path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.salvage.safetensors"

    def _examples_path(self, number: int) -> Path:
        return self.examples_folder / f"shard-{number:05d}.safetensors"

    def _attempt_paths(self) -> list[Path]:
        folder = self.folder / "attempts"
        return [folder / name for name in names_in(folder) if ATTEMPT.fullmatch(name)]

    def _set_aside(self, path: Path, reason: str) -> None:
        self.damage.append(self.store.set_aside(self.key, path, reason))

    def _uncommit(self) -> None:
        """Remove the commit, before what it vouches for changes or is moved."""
        if not self.store.read_only:
            remove_file(self.folder / "done.json")

    def _spec_on_disk(self) -> bool:
        """Whether ``spec.json`` is there and whole; a damaged one is set aside."""
        data = read_bytes(self.folder / "spec.json")
        if data is None:
            return False
        try:
            read_spec(data, self.key, SharedParts())
        except Damaged as error:
            self._uncommit()
            self._set_aside(self.folder / "spec.json", str(error))
            return False
        return True

    def _read_one(self, path: Path, kind: str, number: int) -> dict[str, np.ndarray]:
        data = read_bytes(path)
        if data is None:
            raise StoreError(f"no {kind} {number} is stored for cell {self.key[:12]}")
        try:
            return unpack(data, kind=kind, key=self.key, number=number)
        except Damaged as error:
            if kind == "shard":
                self._uncommit()
            self._set_aside(path, str(error))
            raise CorruptResult(self.damage[-1], hint=RERUN) from error

    def _whole_shards(self) -> dict[int, _Shard]:
        """All shards that are whole and hold arrays like those of the first, by number; others are set aside."""
        shards: dict[int, _Shard] = {}
        for name in names_in(self.folder):
            match = SHARD.fullmatch(name)
            data = read_bytes(self.folder / name) if match else None
            if match is None or data is None:
                continue
            try:
                arrays = unpack(data, kind="shard", key=self.key, number=int(match[1]))
                shard = _Shard(arrays=arrays, size=len(data), sha256=hashlib.sha256(data).hexdigest())
                first = next(iter(shards.values()), shard)
                if not shard.fits(first):
                    raise Damaged("it holds other arrays than the shards before it")
            except Damaged as error:
                self._uncommit()
                self._set_aside(self.folder / name, str(error))
                continue
            shards[int(match[1])] = shard
        return shards

    def _read_commit(self) -> _Commit | None:
        data = read_bytes(self.folder / "done.json")
        if data is None:
            return None
        try:
            record = unseal(data)
            if record["key"] != self.key:
                raise Damaged(f"it belongs to cell {record['key']}")
            return _Commit.of(record, data)
        except (Damaged, KeyError, TypeError, ValueError, AttributeError) as error:
            self._set_aside(self.folder / "done.json", str(error))
        return None

    def _withdraw(self, commit: _Commit, reason: str) -> bool:
        """Set aside a commit that does not hold; False where another one has replaced it since it was read."""
        data = read_bytes(self.folder / "done.json")
        if data == commit.raw:
            self._set_aside(self.folder / "done.json", reason)
        return data in (None, commit.raw)

    def _committed(self, n_shards: int) -> bool:
        """Whether there is a commit of that many shards, and all its files are there with their sizes."""
        commit = self._read_commit()
        if commit is None:
            return False
        problems = [] if commit.n_shards == n_shards else [f"{commit.n_shards} shards were committed, {n_shards} belong to it"]
        for name, (size, _) in commit.files.items():
            try:
                if os.stat(self.folder / name).st_size != size:
                    problems.append(f"{name} has another size than when it was committed")
            except FileNotFoundError:
                problems.append(f"{name} is gone")
            except OSError as error:
                raise storage_error(error, self.folder / name) from error
        if problems:
            self._withdraw(commit, "; ".join(problems))
        return not problems

    def _columns(self) -> Arrays | None:
        """What tables read of a commit whose files are there; None where there is no such file for it, or it is damaged."""
        data = read_bytes(self.folder / columns.NAME)
        raw = read_bytes(self.folder / "done.json") if data is not None else None
        if data is None or raw is None:
            return None
        try:
            found = unpack(data, kind="columns", key=_identity(raw), number=0)
            commit = _Commit.of(json.loads(raw), raw)  # byte for byte the one that was whole when the columns were written
            if rows_of(found) != commit.n or not self._has_sizes(commit):
                return None
            return columns.Columns(found, commit.types, self._all_arrays)
        except (Damaged, KeyError, TypeError, ValueError, AttributeError):
            return None

    def _has_sizes(self, commit: _Commit) -> bool:
        """Whether the files of a commit are there with their sizes: as much as can be told without reading them."""
        try:
            with os.scandir(self.folder) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except OSError as error:
            raise storage_error(error, self.folder) from error
        return all(sizes.get(name) == size for name, (size, _) in commit.files.items())

    def _all_arrays(self) -> dict[str, np.ndarray]:
        arrays = self._verified()
        if arrays is None:
            said = self.damage[-1] if self.damage else f"cell {self.key[:12]} is no longer done"
            raise CorruptResult(said, hint=RERUN)
        return arrays

    def _verified(self) -> dict[str, np.ndarray] | None:
        """The arrays of a commit that holds, byte for byte; None without one."""
        while (commit := self._read_commit()) is not None:
            try:
                return self._read_committed(commit)
            except Damaged as error:
                if self._withdraw(commit, str(error)):
                    return None
        return None

    def _read_committed(self, commit: _Commit) -> dict[str, np.ndarray]:
        parts: dict[int, dict[str, np.ndarray]] = {}
        for name, (_, sha256) in commit.files.items():
            data = read_bytes(self.folder / name)
            if data is None:
                raise Damaged(f"{name} is gone")
            if hashlib.sha256(data).hexdigest() != sha256:
                raise Damaged(f"{name} does not match the checksum with which it was committed")
            if match := SHARD.fullmatch(name):
                parts[int(match[1])] = unpack(data, kind="shard", key=self.key, number=int(match[1]))
        arrays = _join([parts[i] for i in sorted(parts)])
        if sorted(parts) != list(range(commit.n_shards)) or rows_of(arrays) != commit.n:
            raise Damaged(f"{commit.n} examples in {commit.n_shards} shards expected, found {rows_of(arrays)} in {len(parts)}")
        return arrays

    def _read_attempts(self, paths: list[Path]) -> list[dict[str, Any]]:
        records = []
        for path in paths:
            data = read_bytes(path)
            try:
                if data is not None:
                    records.append(unseal(data))
            except Damaged as error:  # no part of the result: the commit stands
                self._set_aside(path, str(error))
        return records


def _identity(done: bytes) -> str:
    """What no other commit has: 64 hexadecimal digits. done: its ``done.json``."""
    return hashlib.sha256(done).hexdigest()


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that all parts hold, concatenated."""
    if not parts:
        return {}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if all(name in part for part in parts)}


def read_spec(data: bytes, key: str, spelling: SharedParts) -> dict[str, Any]:
    """The spec in a file, its parts as ``spelling`` shares them. Raises Damaged for anything but the spec of that key."""
    try:
        parts = {name: spelling(part) for name, part in sorted(dict(json.loads(data)).items())}
    except (ValueError, TypeError, RecursionError, InvalidParameter) as error:
        raise Damaged(f"no spec ({type(error).__name__}: {error})") from error
    text = "{" + ",".join(f"{json.dumps(name)}:{spelled}" for name, (spelled, _) in parts.items()) + "}"
    if (found := hashlib.sha256(text.encode()).hexdigest()) != key:
        raise Damaged(f"it is the spec of cell {found[:12]}, or it was changed")
    return {name: part for name, (_, part) in parts.items()}

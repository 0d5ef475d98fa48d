"""The result store: content-addressed, and whole whatever kills its writers.

::

    <store>/FORMAT                                  which layout this is
    <store>/cells/ab/ab12.../spec.json              what was asked; the sha256 of its canonical form is the folder's name
                             shard-00000.safetensors           per-example arrays of one shard, with their own checksum
                             shard-00000.salvage.safetensors   what a run found that failed later; never a result
                             attempts/*.json        environment, timing, status and traceback of every attempt
                             lease.json             who is working on it (see ``lease.py``)
                             origin.json            of a result that was imported: whose it is, and what a check found
                             done.json              sizes and checksums of all of the above results: the commit
                             columns.safetensors    what tables read of them, derived (see ``columns.py``)
    <store>/measures/ab/ab12.../...                 the same for measurements: what metrics of models measured
    <store>/verdicts/ab/ab12.../spec.json           what was asked about a model (see ``diagnostics/record.py``)
                                zero-gradients.json what one check of it found
    <store>/examples/ab/ab12.../shard-00000.safetensors        adversarial examples, when kept
    <store>/quarantine/ab12.../                     files that could not be read, each with its reason
    <store>/incoming/...                            imports under way (see ``incoming.py``)
    <store>/published/...                           what others have published (see ``published.py``)

Every file is replaced atomically and durably, and ``done.json`` is written last: without it a cell is not done. A file that is
truncated, flipped, misplaced or of another format is moved to quarantine, the commit with it, and the whole shards stay. A
store opened ``read_only`` is left as it is: damage is raised by ``Cell.load`` and noted in ``Store.messages`` by
``Store.results``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from pydantic import ValidationError

from robustbench_lite import columns, incoming
from robustbench_lite.errors import AmbiguousName, CorruptResult, InvalidParameter, StoreError, StoreFormatError, UnknownName
from robustbench_lite.lease import (
    LEASE,
    Process,
    is_temporary,
    make_folder,
    remove_file,
    remove_leftovers,
    storage_error,
    temporary_path,
    write_file,
)
from robustbench_lite.provenance import Origin
from robustbench_lite.results import CellResult

log = logging.getLogger(__name__)

FORMAT = 1
FAILURES = ("error", "timeout", "out-of-memory", "crashed")
OUTCOMES = ("done", "partial", *FAILURES)  # how an attempt can end; partial: stopped in good order before the last shard
CELLS, MEASURES, VERDICTS = "cells", "measures", "verdicts"  # folders: results of attacks, of metrics, of checks of models
RERUN = "run the same `rbl run` command again: it sets the damaged file aside and computes only what is missing"

_FORMAT_LINE = re.compile(r"robustbench-lite store (\d+)\s*")
_KEY = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"shard-(\d{5,})\.safetensors")
_SALVAGE = re.compile(r"shard-(\d{5,})\.salvage\.safetensors")
_ATTEMPT = re.compile(r"\d{8}T\d{6}\.\d{6}Z-\d+-[0-9a-f]+\.json")
_OURS = re.compile(
    r"FORMAT|quarantine/.*|published/[a-z]+\.json|(cells|measures)/[0-9a-f]{2}/lock"
    r"|(cells|measures)/(?P<group>[0-9a-f]{2})/(?P=group)[0-9a-f]{62}/"
    rf"((spec|done|lease|origin)\.json|columns\.safetensors|{_SHARD.pattern}|{_SALVAGE.pattern}|attempts/{_ATTEMPT.pattern})"
    rf"|examples/(?P<of>[0-9a-f]{{2}})/(?P=of)[0-9a-f]{{62}}/{_SHARD.pattern}"
    r"|verdicts/[0-9a-f]{2}/lock|verdicts/(?P<about>[0-9a-f]{2})/(?P=about)[0-9a-f]{62}/[a-z0-9-]+\.json"
)

Arrays = Mapping[str, np.ndarray]


# Keys


def canonical_json(spec: Mapping[str, Any]) -> str:
    """The one spelling of a spec: sorted keys, no blanks, ASCII; whole-numbered floats (below 2**53) as integers.

    Specs that are equal in Python have one spelling, except that True is not 1. Raises InvalidParameter, naming the place, for
    anything that JSON cannot hold exactly: NaN, infinities, keys that are not text, other types than text, numbers, booleans,
    None, lists, tuples and mappings.
    """
    return json.dumps(_canonical(spec, "spec"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidParameter(f"{place} is {value}, which no key can be made of", hint="give a finite number")
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidParameter(f"{place} has the key {key!r}, which is not text")
        return {str(key): _canonical(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, f"{place}[{i}]") for i, item in enumerate(value)]
    raise InvalidParameter(f"{place} is a {type(value).__name__}, which JSON cannot hold: {value!r}")


class Spelling:
    """``canonical_json`` of objects that recur, such as the parts of a store's specs: each is spelled once, and not changed."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Mapping[str, Any], str]] = {}  # with the object itself, so that its id stays its own

    def __call__(self, part: Mapping[str, Any]) -> str:
        """The canonical JSON of ``part``."""
        found = self._known.get(id(part))
        if found is None:
            found = self._known[id(part)] = part, canonical_json(part)
        return found[1]


def cell_key(spec: Mapping[str, Any]) -> str:
    """The key of a cell: 64 hexadecimal digits, the sha256 of the spec's canonical JSON."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()


# File contents


class _Damaged(Exception):
    """A file's contents are not what was written; the message says how that shows."""


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}|{array.dtype.name}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _pack(arrays: Arrays, *, kind: str, key: str, number: int) -> bytes:
    """A safetensors file whose metadata say what it is and what its arrays hash to. The same input gives the same bytes."""
    n = _rows(arrays)
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    facts = {"format": FORMAT, "kind": kind, "key": key, "shard": number, "n": n, "sha256": _digest(plain)}
    # One metadata entry, because safetensors writes several in an order that changes from run to run.
    return bytes(safetensors.numpy.save(plain, metadata={"rbl": json.dumps(facts, sort_keys=True)}))


def _rows(arrays: Arrays) -> int:
    """The common length of the arrays; raises ValueError where they have none, or hold something else than numbers."""
    odd = [name for name, array in arrays.items() if array.dtype.kind not in "biuf" or array.itemsize > 8 or not array.ndim]
    if odd:
        raise ValueError(f"arrays of numbers with one row per example are stored, which these are not: {', '.join(odd)}")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"arrays of one common length are stored, not {lengths}")
    return next(iter(lengths.values()))


def _unpack(data: bytes, *, kind: str, key: str, number: int) -> dict[str, np.ndarray]:
    """The arrays of a file that ``_pack`` made, in order of name; raises _Damaged for anything else."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header["__metadata__"]["rbl"])
        claimed = {name: facts[name] for name in ("format", "kind", "key", "shard")}
        n, sha256 = facts["n"], facts["sha256"]
        loaded = safetensors.numpy.load(data)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make parsers raise nearly anything
        raise _Damaged(f"no whole safetensors file of this store ({type(error).__name__}: {error})") from error
    expected = {"format": FORMAT, "kind": kind, "key": key, "shard": number}
    if claimed != expected:
        wrong = ", ".join(
            f"{name} {claimed[name]!r} instead of {expected[name]!r}" for name in expected if claimed[name] != expected[name]
        )
        raise _Damaged(f"it is something else: {wrong}")
    arrays = {name: loaded[name] for name in sorted(loaded)}
    lengths = sorted({array.shape[:1] for array in arrays.values()})
    if lengths != [(n,)]:
        raise _Damaged(f"{n!r} rows expected, found {lengths}")
    if _digest(arrays) != sha256:
        raise _Damaged("its contents do not match its checksum")
    return arrays


def _seal(record: Mapping[str, Any]) -> bytes:
    """Readable JSON with a checksum of itself; values that JSON does not know are written as text."""
    plain = json.loads(json.dumps(record, default=str))
    plain["sha256"] = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    return (json.dumps(plain, indent=2) + "\n").encode()


def _unseal(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
        sha256 = record.pop("sha256")
        found = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged(f"no record of this store ({type(error).__name__}: {error})") from error
    if found != sha256:
        raise _Damaged("its contents do not match its checksum")
    if record.get("format") != FORMAT:
        raise _Damaged(f"it is of format {record.get('format')!r}, this version reads {FORMAT}")
    return dict(record)


def _read_bytes(path: Path) -> bytes | None:
    """The contents of a file, None where there is none; raises StoreError where it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise storage_error(error, path) from error


def _names(folder: Path) -> list[str]:
    """The sorted names in a folder; empty where there is none."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise storage_error(error, folder) from error


def _now() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


# Cells


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

    @property
    def identity(self) -> str:
        """What no other commit has: 64 hexadecimal digits."""
        return hashlib.sha256(self.raw).hexdigest()


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


class Attempt:
    """The record of one attempt at a cell, rewritten atomically as it goes on. Made by ``Cell.begin_attempt``."""

    def __init__(self, path: Path, environment: Mapping[str, Any]) -> None:
        self.path = path
        self._began = time.monotonic()
        self._record: dict[str, Any] = {
            "format": FORMAT,
            "status": "running",
            "reason": "",
            "traceback": "",
            "started": _now(),
            "finished": None,
            "process": Process.current().to_json(),
            "environment": dict(environment),
            "progress": [],
        }
        self._save({})

    def update(self, **facts: Any) -> None:
        """Add an entry to the attempt's ``progress``, such as ``shard=3, memory=[...]``, and note the seconds spent so far."""
        self._save({"progress": [*self._record["progress"], {"time": _now(), **facts}]})

    def finish(self, status: str, reason: str = "", traceback: str = "", *, seconds: float | None = None) -> None:
        """Record how it ended: one of OUTCOMES, with a reason in words and a traceback where there is one.

        seconds: what it took, where it was made elsewhere.
        """
        if status not in OUTCOMES:
            raise ValueError(f"an attempt ends as one of {', '.join(OUTCOMES)}, not {status!r}")
        facts = {"status": status, "reason": reason, "traceback": traceback, "finished": _now()}
        self._save(facts | ({} if seconds is None else {"seconds": seconds}))

    def _save(self, facts: Mapping[str, Any]) -> None:
        self._record = {**self._record, "seconds": round(time.monotonic() - self._began, 3), **facts}
        write_file(self.path, _seal(self._record))


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
        status, reason = _outcome(self._read_attempts(attempts[-1:]))
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
            status, reason = _outcome(attempts)
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
        for name in _names(self.examples_folder):
            if match := _SHARD.fullmatch(name):
                with contextlib.suppress(CorruptResult):
                    yield self.read_examples(int(match[1]))

    def salvaged(self) -> dict[str, np.ndarray] | None:
        """What failed runs found in shards that are not whole, joined in shard order: for footnotes, never for scores."""
        found = []
        whole = {name for name in _names(self.folder) if _SHARD.fullmatch(name)}
        for name in _names(self.folder):
            match = _SALVAGE.fullmatch(name)
            if match and self._shard_path(int(match[1])).name not in whole:
                with contextlib.suppress(CorruptResult):
                    found.append(self._read_one(self.folder / name, "salvage", int(match[1])))
        return _join(found) or None

    @property
    def origin(self) -> Origin | None:
        """Where an imported result comes from, and what a check of it found; None for one that was run here."""
        data = _read_bytes(self.folder / incoming.ORIGIN)
        if data is None:
            return None
        try:
            record = _unseal(data)
            return Origin.model_validate({key: value for key, value in record.items() if key != "format"})
        except (_Damaged, ValidationError):  # not set aside: without it, the result would count as run here
            return Origin(problem="the record of where it comes from cannot be read")

    # Writing

    def write_origin(self, origin: Origin) -> None:
        """Mark the cell as imported, or store what a check of it found."""
        self.store.require_writable()
        make_folder(self.folder)
        write_file(self.folder / incoming.ORIGIN, _seal({"format": FORMAT, **origin.model_dump()}))

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
        if n not in (None, _rows(arrays)):
            raise ValueError(f"shard {number} has {_rows(arrays)} rows, {n} expected")
        self.write_spec()
        path, data = self._shard_path(number), _pack(arrays, kind="shard", key=self.key, number=number)
        if _read_bytes(path) != data:
            self._uncommit()
            write_file(path, data)
        remove_file(self._salvage_path(number))

    def write_salvage(self, number: int, arrays: Arrays) -> None:
        """Store what the target saw found in a shard that failed; it goes when the shard is written."""
        self.write_spec()
        write_file(self._salvage_path(number), _pack(arrays, kind="salvage", key=self.key, number=number))

    def write_examples(self, number: int, arrays: Arrays) -> None:
        """Store the adversarial examples of one shard; they are no part of the commit."""
        self.store.require_writable()
        make_folder(self.examples_folder)
        write_file(self._examples_path(number), _pack(arrays, kind="examples", key=self.key, number=number))

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
        n = sum(_rows(shard.arrays) for shard in shards.values())
        types = {name: array.dtype.name for name, array in sorted(shards[0].arrays.items())}
        record = {"format": FORMAT, "key": self.key, "committed": _now(), "n": n, "n_shards": n_shards, "files": files}
        write_file(self.folder / "done.json", done := _seal(record | {"arrays": types}))
        found = columns.narrowed(_join([shards[i].arrays for i in range(n_shards)]))
        if found:
            commit = hashlib.sha256(done).hexdigest()
            with contextlib.suppress(StoreError):  # the cell is committed; without this file, tables read the shards
                write_file(self.folder / columns.NAME, _pack(found, kind="columns", key=commit, number=0))

    def begin_attempt(self, environment: Mapping[str, Any]) -> Attempt:
        """Record that this process starts to work on the cell, and tidy up after those that died at it."""
        self.write_spec()
        folder = self.folder / "attempts"
        make_folder(folder)
        attempt = Attempt(folder / f"{_now()}-{os.getpid()}-{secrets.token_hex(4)}.json", environment)
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
        if status not in OUTCOMES:
            raise ValueError(f"an attempt ends as one of {', '.join(OUTCOMES)}, not {status!r}")
        ended = 0
        for path in self._attempt_paths():
            for record in self._read_attempts([path]):
                process = Process.from_json(record["process"])
                if record["status"] == "running" and process.alive() is False and pid in (None, process.pid):
                    write_file(path, _seal(record | {"status": status, "reason": reason, "finished": _now()}))
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
        return [folder / name for name in _names(folder) if _ATTEMPT.fullmatch(name)]

    def _set_aside(self, path: Path, reason: str) -> None:
        self.damage.append(self.store.set_aside(self.key, path, reason))

    def _uncommit(self) -> None:
        """Remove the commit, before what it vouches for changes or is moved."""
        if not self.store.read_only:
            remove_file(self.folder / "done.json")

    def _spec_on_disk(self) -> bool:
        """Whether ``spec.json`` is there and whole; a damaged one is set aside."""
        data = _read_bytes(self.folder / "spec.json")
        if data is None:
            return False
        try:
            _read_spec(data, self.key, {})
        except _Damaged as error:
            self._uncommit()
            self._set_aside(self.folder / "spec.json", str(error))
            return False
        return True

    def _read_one(self, path: Path, kind: str, number: int) -> dict[str, np.ndarray]:
        data = _read_bytes(path)
        if data is None:
            raise StoreError(f"no {kind} {number} is stored for cell {self.key[:12]}")
        try:
            return _unpack(data, kind=kind, key=self.key, number=number)
        except _Damaged as error:
            if kind == "shard":
                self._uncommit()
            self._set_aside(path, str(error))
            raise CorruptResult(self.damage[-1], hint=RERUN) from error

    def _whole_shards(self) -> dict[int, _Shard]:
        """All shards that are whole and hold arrays like those of the first, by number; others are set aside."""
        shards: dict[int, _Shard] = {}
        for name in _names(self.folder):
            match = _SHARD.fullmatch(name)
            data = _read_bytes(self.folder / name) if match else None
            if match is None or data is None:
                continue
            try:
                arrays = _unpack(data, kind="shard", key=self.key, number=int(match[1]))
                shard = _Shard(arrays=arrays, size=len(data), sha256=hashlib.sha256(data).hexdigest())
                first = next(iter(shards.values()), shard)
                if not shard.fits(first):
                    raise _Damaged("it holds other arrays than the shards before it")
            except _Damaged as error:
                self._uncommit()
                self._set_aside(self.folder / name, str(error))
                continue
            shards[int(match[1])] = shard
        return shards

    def _read_commit(self) -> _Commit | None:
        data = _read_bytes(self.folder / "done.json")
        if data is None:
            return None
        try:
            record = _unseal(data)
            if record["key"] != self.key:
                raise _Damaged(f"it belongs to cell {record['key']}")
            files = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in record["files"].items()}
            types = {str(name): str(dtype) for name, dtype in record.get("arrays", {}).items()}
            return _Commit(raw=data, n=record["n"], n_shards=record["n_shards"], files=files, types=types)
        except (_Damaged, KeyError, TypeError, ValueError, AttributeError) as error:
            self._set_aside(self.folder / "done.json", str(error))
        return None

    def _withdraw(self, commit: _Commit, reason: str) -> bool:
        """Set aside a commit that does not hold; False where another one has replaced it since it was read."""
        data = _read_bytes(self.folder / "done.json")
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
        data = _read_bytes(self.folder / columns.NAME)
        commit = self._read_commit() if data is not None else None
        if data is None or commit is None or not self._has_sizes(commit):
            return None
        try:
            found = _unpack(data, kind="columns", key=commit.identity, number=0)
            if _rows(found) != commit.n:
                return None
            return columns.Columns(found, commit.types, self._all_arrays)
        except (_Damaged, KeyError, TypeError):
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
            except _Damaged as error:
                if self._withdraw(commit, str(error)):
                    return None
        return None

    def _read_committed(self, commit: _Commit) -> dict[str, np.ndarray]:
        parts: dict[int, dict[str, np.ndarray]] = {}
        for name, (_, sha256) in commit.files.items():
            data = _read_bytes(self.folder / name)
            if data is None:
                raise _Damaged(f"{name} is gone")
            if hashlib.sha256(data).hexdigest() != sha256:
                raise _Damaged(f"{name} does not match the checksum with which it was committed")
            if match := _SHARD.fullmatch(name):
                parts[int(match[1])] = _unpack(data, kind="shard", key=self.key, number=int(match[1]))
        arrays = _join([parts[i] for i in sorted(parts)])
        if sorted(parts) != list(range(commit.n_shards)) or _rows(arrays) != commit.n:
            raise _Damaged(f"{commit.n} examples in {commit.n_shards} shards expected, found {_rows(arrays)} in {len(parts)}")
        return arrays

    def _read_attempts(self, paths: list[Path]) -> list[dict[str, Any]]:
        records = []
        for path in paths:
            data = _read_bytes(path)
            try:
                if data is not None:
                    records.append(_unseal(data))
            except _Damaged as error:  # no part of the result: the commit stands
                self._set_aside(path, str(error))
        return records


def _outcome(attempts: list[dict[str, Any]]) -> tuple[str, str]:
    """How the last attempt failed (empty where it did not) and the reason."""
    if not attempts:
        return "", ""
    last = attempts[-1]
    if last["status"] == "running":
        process = Process.from_json(last["process"])
        word = {True: "is being worked on by", False: "was interrupted: no report from", None: "was last worked on by"}
        return "", f"{word[process.alive()]} {process}"
    return (last["status"] if last["status"] in FAILURES else ""), last["reason"]


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that all parts hold, concatenated."""
    if not parts:
        return {}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if all(name in part for part in parts)}


def _read_spec(data: bytes, key: str, shared: dict[str, Any]) -> dict[str, Any]:
    """The spec in a file. shared: parts of specs by their spelling; equal parts become one object, which is added there."""
    try:
        spec = dict(json.loads(data))
        parts = {name: canonical_json(part) for name, part in sorted(spec.items())}
    except (ValueError, TypeError, RecursionError, InvalidParameter) as error:
        raise _Damaged(f"no spec ({type(error).__name__}: {error})") from error
    text = "{" + ",".join(f"{json.dumps(name)}:{part}" for name, part in parts.items()) + "}"
    if (found := hashlib.sha256(text.encode()).hexdigest()) != key:
        raise _Damaged(f"it is the spec of cell {found[:12]}, or it was changed")
    for part in parts.values():
        if part not in shared:
            shared[part] = json.loads(part)
    return {name: shared[part] for name, part in parts.items()}


# The store


class Store:
    """A folder of results; made by ``Store.open``. messages lists the damage found so far."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self.messages: list[str] = []
        self._parts: dict[str, Any] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool = True, read_only: bool = False) -> Store:
        """Open a store, and make it where it is missing (unless read_only, or create is False).

        Raises StoreFormatError for a newer format and for a folder that is no store, StoreError where there is no store, or the
        folder cannot be read (or, unless read_only, written).
        """
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise StoreFormatError(f"{folder} is a file, not a result store", hint="name a folder with --store")
        if not folder.is_dir():
            if read_only or not create:
                raise StoreError(
                    f"there is no result store at {folder}", hint="make one with `rbl run`, or name another with --store"
                )
            make_folder(folder)
        _require_format(folder, create=create and not read_only)
        for name in (CELLS, MEASURES, VERDICTS, "examples", "quarantine"):
            if (folder / name).exists() and not (folder / name).is_dir():
                raise StoreError(f"a file is in the way at {folder / name}", hint="move it elsewhere")
        if not read_only:
            _require_writing(folder)
            remove_leftovers(folder)
            incoming.recover(folder)
        return cls(folder, read_only=read_only)

    def cell(self, spec: Mapping[str, Any]) -> Cell:
        """The cell of a spec, whether anything is stored of it or not; the measurement, where the spec names a metric.

        Raises InvalidParameter as ``canonical_json`` does.
        """
        text = canonical_json(spec)
        place = MEASURES if "metric" in spec else CELLS
        return Cell(self, hashlib.sha256(text.encode()).hexdigest(), json.loads(text), place)

    def cells(self) -> Iterator[Cell]:
        """All cells that have a whole spec, by key. Anything else in the store is passed over; see ``check``."""
        return self._all(CELLS)

    def measurements(self) -> Iterator[Cell]:
        """All measurements, as ``cells``."""
        return self._all(MEASURES)

    def _all(self, place: str) -> Iterator[Cell]:
        hidden = incoming.pending(self.path)
        for folder in self._folders(place):
            cell = None if folder.name in hidden else self._cell_at(folder)
            if cell is not None:
                yield cell

    def get(self, key_prefix: str) -> Cell:
        """The stored cell or measurement whose key starts so; raises UnknownName or AmbiguousName."""
        places = (folder for place in (CELLS, MEASURES) for folder in self._folders(place, key_prefix[:2]))
        hidden = incoming.pending(self.path)
        folders = [folder for folder in places if folder.name.startswith(key_prefix) and folder.name not in hidden]
        if len(folders) > 1:
            listed = ", ".join(folder.name[: len(key_prefix) + 6] for folder in folders[:4])
            raise AmbiguousName(f"{len(folders)} cells start with {key_prefix!r}: {listed}", hint="give more digits of the key")
        if not folders:
            raise UnknownName(f"no cell in {self.path} has a key that starts with {key_prefix!r}")
        cell = self._cell_at(folders[0])
        if cell is None:
            raise CorruptResult(f"cell {folders[0].name[:12]} has no spec.json that can be read", hint=RERUN)
        return cell

    def results(self, wanted: Callable[[Mapping[str, Any]], bool] | None = None) -> Iterator[CellResult]:
        """The results of all cells whose spec is ``wanted``, one in memory at a time. Damage is noted and does not stop it."""
        for cell in self.cells():
            if wanted is None or wanted(cell.spec):
                yield cell.load_what_is_whole()

    def check(self) -> list[str]:
        """Read everything, change nothing, and say what is damaged, left over or does not belong here."""
        reader = Store(self.path, read_only=True)
        found = list(self._strays())
        for cell in (*reader.cells(), *reader.measurements()):
            cell.load_what_is_whole()
            cell.salvaged()
            for _ in cell.examples():
                pass
        for path in sorted((self.path / VERDICTS).glob("*/*/*.json")):
            if path.name != LEASE:
                reader.read_record(path)
        return found + reader.messages

    def read_record(self, path: Path) -> dict[str, Any] | None:
        """What ``write_record`` wrote; None where there is nothing, or it is damaged: then it is set aside."""
        data = _read_bytes(path)
        if data is None:
            return None
        try:
            return _unseal(data)
        except _Damaged as error:
            self.set_aside(path.parent.name, path, str(error))
            return None

    def write_record(self, path: Path, record: Mapping[str, Any], *, durable: bool = True) -> None:
        """Store a small record as JSON with a checksum of itself, atomically, in a folder that is made where it is missing."""
        self.require_writable()
        make_folder(path.parent)
        write_file(path, _seal({"format": FORMAT, **record}), durable=durable)

    def require_writable(self) -> None:
        """Raise StoreError where the store was opened for reading."""
        if self.read_only:
            raise StoreError(f"{self.path} was opened for reading only")

    def set_aside(self, key: str, path: Path, reason: str) -> str:
        """Move a file of a cell to quarantine with a reason, unless read_only; returns the message that was noted."""
        message = f"{path.relative_to(self.path)}: {reason}"
        if not self.read_only:
            folder = self.path / "quarantine" / key
            make_folder(folder)
            aside = folder / f"{_now()}-{path.name}"
            try:
                os.replace(path, aside)
            except FileNotFoundError:
                pass  # another process was quicker
            except OSError as error:
                raise storage_error(error, path) from error
            else:
                with contextlib.suppress(StoreError):  # on a full disk the log has the reason
                    write_file(aside.with_name(aside.name + ".reason.txt"), f"{message}\n".encode())
        if message not in self.messages:
            self.messages.append(message)
            log.warning("%s", message)
        return message

    def _folders(self, place: str, start: str = "") -> Iterator[Path]:
        for group in _names(self.path / place):
            if len(group) == 2 and group.startswith(start):
                folder = self.path / place / group
                yield from (folder / name for name in _names(folder) if _KEY.fullmatch(name) and name.startswith(group))

    def _cell_at(self, folder: Path) -> Cell | None:
        """The cell in a folder; None where it has no whole spec."""
        data = _read_bytes(folder / "spec.json")
        if data is None:
            return None
        try:
            return Cell(self, folder.name, _read_spec(data, folder.name, self._parts), folder.parent.parent.name)
        except _Damaged:
            Cell(self, folder.name, {}, folder.parent.parent.name)._spec_on_disk()  # sets it aside, with the commit
            return None

    def _strays(self) -> Iterator[str]:
        """What the store did not write, temporary files, and cells without a spec."""
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            if is_temporary(path.name):
                yield f"{name}: not finished; the next run of the cell removes it when its writer is dead"
            elif name.startswith(f"{incoming.FOLDER}/"):
                yield f"{name}: an import that is not finished; the next run or import takes it back when its writer is dead"
            elif not path.is_dir() and not _OURS.fullmatch(name):
                yield f"{name}: not a file of this store"
        for folder in (*self._folders(CELLS), *self._folders(MEASURES)):
            if not (folder / "spec.json").exists():
                yield f"{folder.relative_to(self.path)}: no spec.json; passed over until the same cell is run again"


def _require_format(folder: Path, *, create: bool) -> None:
    data = _read_bytes(folder / "FORMAT")
    if data is None:
        if any(not is_temporary(name) for name in _names(folder)):
            raise StoreFormatError(
                f"{folder} is not empty and no result store: it has no FORMAT file",
                hint="name an empty or a new folder with --store",
            )
        if not create:
            raise StoreError(
                f"there is no result store at {folder}", hint="make one with `rbl run`, or name another with --store"
            )
        write_file(folder / "FORMAT", f"robustbench-lite store {FORMAT}\n".encode())
        return
    match = _FORMAT_LINE.fullmatch(data.decode(errors="replace"))
    if match is None:
        raise StoreFormatError(f"{folder / 'FORMAT'} is not that of a result store: {data[:60]!r}")
    if int(match[1]) > FORMAT:
        raise StoreFormatError(
            f"{folder} is a store of format {match[1]}, and this robustbench-lite reads formats up to {FORMAT}",
            hint=f"install a robustbench-lite that reads store format {match[1]}: pip install --upgrade robustbench-lite",
        )


def _require_writing(folder: Path) -> None:
    """Find out now, not after an hour's work, that nothing can be stored."""
    probe = temporary_path(folder)
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise storage_error(error, folder) from error

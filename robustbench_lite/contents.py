"""Contents of the store's files: arrays and records that carry their own checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from robustbench_lite.lease import storage_error

FORMAT = 1

Arrays = Mapping[str, np.ndarray]


class Damaged(Exception):
    """A file's contents are not what was written; the message says how that shows."""


_name_of = cache(lambda dtype: dtype.name)  # numpy makes it anew each time, which takes as long as hashing an array


def digest_of(arrays: Arrays) -> str:
    """The sha256 of arrays, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}|{_name_of(array.dtype)}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def pack(arrays: Arrays, *, kind: str, key: str, number: int) -> bytes:
    """A safetensors file whose metadata say what it is and what its arrays hash to. The same input gives the same bytes."""
    n = rows_of(arrays)
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    facts = {"format": FORMAT, "kind": kind, "key": key, "shard": number, "n": n, "sha256": digest_of(plain)}
    # One metadata entry, because safetensors writes several in an order that changes from run to run.
    return bytes(safetensors.numpy.save(plain, metadata={"rbl": json.dumps(facts, sort_keys=True)}))


def rows_of(arrays: Arrays) -> int:
    """The common length of the arrays; raises ValueError where they have none, or hold something else than numbers."""
    odd = [name for name, array in arrays.items() if array.dtype.kind not in "biuf" or array.itemsize > 8 or not array.ndim]
    if odd:
        raise ValueError(f"arrays of numbers with one row per example are stored, which these are not: {', '.join(odd)}")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"arrays of one common length are stored, not {lengths}")
    return next(iter(lengths.values()))


def unpack(data: bytes, *, kind: str, key: str, number: int) -> dict[str, np.ndarray]:
    """The arrays of a file that ``pack`` made, in order of name; raises Damaged for anything else."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header["__metadata__"]["rbl"])
        claimed = {name: facts[name] for name in ("format", "kind", "key", "shard")}
        n, sha256 = facts["n"], facts["sha256"]
        loaded = safetensors.numpy.load(data)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make parsers raise nearly anything
        raise Damaged(f"no whole safetensors file of this store ({type(error).__name__}: {error})") from error
    expected = {"format": FORMAT, "kind": kind, "key": key, "shard": number}
    if claimed != expected:
        wrong = ", ".join(
            f"{name} {claimed[name]!r} instead of {expected[name]!r}" for name in expected if claimed[name] != expected[name]
        )
        raise Damaged(f"it is something else: {wrong}")
    arrays = {name: loaded[name] for name in sorted(loaded)}
    lengths = sorted({array.shape[:1] for array in arrays.values()})
    if lengths != [(n,)]:
        raise Damaged(f"{n!r} rows expected, found {lengths}")
    if digest_of(arrays) != sha256:
        raise Damaged("its contents do not match its checksum")
    return arrays


def seal(record: Mapping[str, Any]) -> bytes:
    """Readable JSON with a checksum of itself; values that JSON does not know are written as text."""
    plain = json.loads(json.dumps(record, default=str))
    plain["sha256"] = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    return (json.dumps(plain, indent=2) + "\n").encode()


def unseal(data: bytes) -> dict[str, Any]:
    """The record that ``seal`` wrote; raises Damaged for anything else."""
    try:
        record = json.loads(data)
        sha256 = record.pop("sha256")
        found = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"no record of this store ({type(error).__name__}: {error})") from error
    if found != sha256:
        raise Damaged("its contents do not match its checksum")
    if record.get("format") != FORMAT:
        raise Damaged(f"it is of format {record.get('format')!r}, this version reads {FORMAT}")
    return dict(record)


def read_bytes(path: Path) -> bytes | None:
    """The contents of a file, None where there is none; raises StoreError where it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise storage_error(error, path) from error


def names_in(folder: Path) -> list[str]:
    """The sorted names in a folder; empty where there is none."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise storage_error(error, folder) from error


def now() -> str:
    """The time, as it is written in records and names of files."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")

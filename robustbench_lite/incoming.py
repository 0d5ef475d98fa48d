"""Taking several cells into a store at once: all of them or, whatever happens, none.

A journal, ``<store>/incoming/<receipt>.json``, names the cells before the first of them is written, and removing it is the
commit: until then readers pass over these cells. A journal whose process is dead is taken back by the next who opens the store
for writing: cells whose ``origin.json`` names its receipt go, all else stays.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from robustbench_lite.lease import FOREIGN_AGE, Process, make_folder, remove_file, storage_error, sync_folder, write_file

FOLDER = "incoming"
ORIGIN = "origin.json"


@contextmanager
def together(store: Path, keys: Sequence[str]) -> Iterator[str]:
    """Cells with these keys appear together when the block ends, or not at all where it raises. Gives the receipt."""
    receipt = secrets.token_hex(8)
    journal = store / FOLDER / f"{receipt}.json"
    make_folder(journal.parent)
    write_file(journal, json.dumps({"process": Process.current().to_json(), "keys": list(keys)}).encode())
    try:
        yield receipt
    except BaseException:
        _take_back(store, journal)
        raise
    remove_file(journal)
    sync_folder(journal.parent)


def pending(store: Path) -> frozenset[str]:
    """The keys of cells that are being taken in, or whose import was interrupted: they are not there yet."""
    return frozenset(key for journal in _journals(store) for key in _read(journal)[1])


def recover(store: Path) -> None:
    """Take back the imports of processes that are dead; of other machines, after an hour."""
    for journal in _journals(store):
        alive = _read(journal)[0]
        if alive is False or (alive is None and _age(journal) > FOREIGN_AGE):
            _take_back(store, journal)


def _journals(store: Path) -> list[Path]:
    return sorted((store / FOLDER).glob("*.json"))


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _read(journal: Path) -> tuple[bool | None, list[str]]:
    """Whether its process lives (None: cannot be told), and the keys."""
    try:
        record = json.loads(journal.read_bytes())
        return Process.from_json(record["process"]).alive(), [str(key) for key in record["keys"]]
    except FileNotFoundError:  # finished in this moment
        return True, []
    except (ValueError, KeyError, TypeError):
        return None, []


def _take_back(store: Path, journal: Path) -> None:
    for key in _read(journal)[1]:
        folder = store / "cells" / key[:2] / key
        if _receipt(folder / ORIGIN) == journal.stem:
            remove_cell(store, key)
    remove_file(journal)


def remove_cell(store: Path, key: str) -> None:
    """Remove a cell and its examples; raises StoreError where that fails. The origin goes last: it says whose it is."""
    folder = store / "cells" / key[:2] / key
    try:
        shutil.rmtree(store / "examples" / key[:2] / key, ignore_errors=True)
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != ORIGIN:
                path.unlink()
        (folder / ORIGIN).unlink(missing_ok=True)
        folder.rmdir()
    except OSError as error:
        raise storage_error(error, folder) from error


def _receipt(path: Path) -> str:
    try:
        return str(json.loads(path.read_bytes()).get("receipt", ""))
    except (OSError, ValueError, AttributeError):
        return ""

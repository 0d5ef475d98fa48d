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
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from robustbench_lite import incoming
from robustbench_lite.attempt import ATTEMPT
from robustbench_lite.cell import CELLS, MEASURES, RERUN, SALVAGE, SHARD, Cell, read_spec
from robustbench_lite.contents import FORMAT, Damaged, names_in, now, read_bytes, seal, unseal
from robustbench_lite.errors import AmbiguousName, CorruptResult, StoreError, StoreFormatError, UnknownName
from robustbench_lite.keys import SharedParts, canonical_json
from robustbench_lite.lease import (
    LEASE,
    is_temporary,
    make_folder,
    remove_leftovers,
    storage_error,
    temporary_path,
    write_file,
)
from robustbench_lite.results import CellResult

log = logging.getLogger(__name__)

VERDICTS = "verdicts"  # folder: checks of models

_FORMAT_LINE = re.compile(r"robustbench-lite store (\d+)\s*")
_KEY = re.compile(r"[0-9a-f]{64}")
_OURS = re.compile(
    r"FORMAT|quarantine/.*|published/[a-z]+\.json|(cells|measures)/[0-9a-f]{2}/lock"
    r"|(cells|measures)/(?P<group>[0-9a-f]{2})/(?P=group)[0-9a-f]{62}/"
    rf"((spec|done|lease|origin)\.json|columns\.safetensors|{SHARD.pattern}|{SALVAGE.pattern}|attempts/{ATTEMPT.pattern})"
    rf"|examples/(?P<of>[0-9a-f]{{2}})/(?P=of)[0-9a-f]{{62}}/{SHARD.pattern}"
    r"|verdicts/[0-9a-f]{2}/lock|verdicts/(?P<about>[0-9a-f]{2})/(?P=about)[0-9a-f]{62}/[a-z0-9-]+\.json"
)


class Store:
    """A folder of results; made by ``Store.open``. messages lists the damage found so far."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self.messages: list[str] = []
        self._parts = SharedParts()

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
        data = read_bytes(path)
        if data is None:
            return None
        try:
            return unseal(data)
        except Damaged as error:
            self.set_aside(path.parent.name, path, str(error))
            return None

    def write_record(self, path: Path, record: Mapping[str, Any], *, durable: bool = True) -> None:
        """Store a small record as JSON with a checksum of itself, atomically, in a folder that is made where it is missing."""
        self.require_writable()
        make_folder(path.parent)
        write_file(path, seal({"format": FORMAT, **record}), durable=durable)

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
            aside = folder / f"{now()}-{path.name}"
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
        for group in names_in(self.path / place):
            if len(group) == 2 and group.startswith(start):
                folder = self.path / place / group
                yield from (folder / name for name in names_in(folder) if _KEY.fullmatch(name) and name.startswith(group))

    def _cell_at(self, folder: Path) -> Cell | None:
        """The cell in a folder; None where it has no whole spec."""
        data = read_bytes(folder / "spec.json")
        if data is None:
            return None
        try:
            return Cell(self, folder.name, read_spec(data, folder.name, self._parts), folder.parent.parent.name)
        except Damaged:
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
    data = read_bytes(folder / "FORMAT")
    if data is None:
        if any(not is_temporary(name) for name in names_in(folder)):
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

"""Results out of a store into a bundle, and out of a bundle into a store: all of them, or none."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from robustbench_lite import __version__, incoming
from robustbench_lite.bundle.archive import Opened, is_member, member_of, opened, pack
from robustbench_lite.bundle.contents import check_arrays, check_examples, check_spec
from robustbench_lite.bundle.manifest import Manifest, Summary, asked_of
from robustbench_lite.cell import Cell
from robustbench_lite.errors import CorruptResult, InvalidBundle, StoreError
from robustbench_lite.lease import Lease, temporary_path
from robustbench_lite.provenance import Origin
from robustbench_lite.resolve import subset_checksum
from robustbench_lite.results import CellResult
from robustbench_lite.store import Store

# What of an environment stays at home: names of machines and processes.
_PRIVATE = ("host", "pid")
_ENVIRONMENT = ("python", "platform", "device", "threads", "packages")


# Export


def export_cells(cells: Sequence[Cell], path: Path, *, examples: bool = True, by: str = "", where: str = "") -> Manifest:
    """Write results to a bundle, which must not be there yet. examples: with the images that were kept.

    by, where: whose results these are, and where more is told. Raises InvalidBundle for results that are not whole or that were
    imported (they are their maker's to hand on), and StoreError.
    """
    if path.exists():
        raise StoreError(f"{path} is there already", hint="name another file")
    with tempfile.TemporaryDirectory(prefix="rbl-bundle-") as scratch:
        store = Store.open(scratch)
        summaries = {cell.key: _exported(cell, store, examples=examples) for cell in cells}
        folder = Path(scratch)
        names = sorted(n for p in folder.rglob("*") if p.is_file() and is_member(n := p.relative_to(folder).as_posix()))
        manifest = Manifest(
            created=_now(),
            by=by,
            where=where,
            made_with={"robustbench-lite": __version__},
            cells=summaries,
            members={name: member_of(folder / name) for name in names},
        )
        unfinished = temporary_path(path.absolute().parent)
        try:
            pack(folder, manifest, unfinished)
            with opened(unfinished) as again:  # what would not be taken is not handed out
                for _ in checked(again):
                    pass
            unfinished.rename(path)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}", hint="name another file") from error
        finally:
            unfinished.unlink(missing_ok=True)
    return manifest


def _exported(cell: Cell, store: Store, *, examples: bool) -> Summary:
    if cell.origin is not None:
        raise InvalidBundle(f"{_named(cell)} was imported", hint="hand on the bundle that it came in: that names its maker")
    result = cell.load()
    if result.status != "done":
        raise InvalidBundle(f"{_named(cell)} is {result.status}", hint="rbl run finishes it")
    copy = store.cell(cell.spec)
    shards = _copy_arrays(cell, copy)
    kept = _copy_examples(cell, copy, shards) if examples else 0
    environment = {name: result.environment[name] for name in _ENVIRONMENT if name in result.environment}
    facts = asked_of(cell.spec) | {"n": result.n, "seconds": result.seconds, "environment": environment}
    return Summary(**facts, shards=shards, examples=kept)


def _copy_arrays(cell: Cell, copy: Cell) -> int:
    """Copy all shards of a whole result and commit them; returns how many there are."""
    number = 0
    while cell.has_shard(number):
        copy.write_shard(number, cell.read_shard(number))
        number += 1
    copy.commit(number)
    return number


def _copy_examples(cell: Cell, copy: Cell, shards: int) -> int:
    kept = 0
    for number in range(shards):
        if cell.has_examples(number):
            copy.write_examples(number, cell.read_examples(number))
            kept += 1
    return kept


# Import


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of a bundle: the keys of results that are new, and of those that were here already, the same."""

    manifest: Manifest
    sha256: str
    new: tuple[str, ...]
    known: tuple[str, ...]


def checked(bundle: Opened) -> Iterator[tuple[Cell, CellResult]]:
    """The results of a bundle, each looked at whole. Raises InvalidBundle at the first that is not as it should be."""
    for key, summary in bundle.manifest.cells.items():
        name = f"result {key[:12]} ({summary.defense} under {summary.attack})"
        try:
            cell = bundle.store.get(key)
            check_spec(cell.spec)
            if problem := summary.agrees_with(cell.spec):
                raise InvalidBundle(problem)
            result = cell.load()
            if result.status != "done":
                raise InvalidBundle(f"it is {result.status}, not whole")
            check_arrays(cell.spec, result.arrays)
            if subset_checksum(result.arrays["index"].tolist()) != cell.spec["dataset"]["subset"]:
                raise InvalidBundle("its examples are not the subset that its spec names by checksum")
            shards = sorted(cell.state(summary.shards).shards)
            if len(shards) != summary.shards:
                raise InvalidBundle(f"the manifest says {summary.shards} shards, found {len(shards)}")
            _check_examples(cell, result, summary)
        except (CorruptResult, StoreError) as error:
            raise InvalidBundle(f"{name}: {error.message}") from error
        except InvalidBundle as error:
            raise InvalidBundle(f"{name}: {error.message}", hint=error.hint) from error
        yield cell, result


def _check_examples(cell: Cell, result: CellResult, summary: Summary) -> None:
    kept = 0
    for number in range(summary.shards):
        if cell.has_examples(number):
            rows = np.isin(result.arrays["index"], cell.read_shard(number)["index"])
            check_examples(cell.spec, {name: array[rows] for name, array in result.arrays.items()}, cell.read_examples(number))
            kept += 1
    if kept != summary.examples:
        raise InvalidBundle(f"the manifest says images of {summary.examples} shards, found those of {kept}")


def import_bundle(path: Path, store: Store) -> Imported:
    """Take the results of a bundle into a store: all that are new, or, where anything is wrong, none.

    Raises InvalidBundle for a bundle that does not validate, or that contradicts what the store holds.
    """
    with opened(path) as bundle:
        new, known = list[Cell](), list[Cell]()
        for source, result in checked(bundle):
            (known if _is_here(store.cell(source.spec), result) else new).append(source)
        with incoming.together(store.path, [source.key for source in new]) as receipt:
            for source in new:
                origin = Origin(
                    by=bundle.manifest.by,
                    where=bundle.manifest.where,
                    bundle=bundle.sha256,
                    imported=_now(),
                    receipt=receipt,
                )
                _take(source, store.cell(source.spec), origin, bundle.manifest.cells[source.key])
        keys = [tuple(source.key for source in each) for each in (new, known)]
        return Imported(manifest=bundle.manifest, sha256=bundle.sha256, new=keys[0], known=keys[1])


def _is_here(cell: Cell, result: CellResult) -> bool:
    """Whether a store has the same result already; raises InvalidBundle where it has another, or an unfinished one."""
    here = cell.load_what_is_whole()
    if here.status == "missing":
        return False
    if here.status != "done":
        raise InvalidBundle(
            f"this store has a run of {result.label} that is {here.status}", hint="rbl run finishes it; or import into another"
        )
    if differing := difference(here.arrays, result.arrays):
        raise InvalidBundle(
            f"this store has another result of {result.label}: {differing}",
            hint="rbl verify says which is right; import into another store to keep both",
        )
    return True


def difference(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> str:
    """How two results of one cell differ, in words; empty where they do not."""
    if set(one) != set(other):
        return f"only one has {', '.join(sorted(set(one) ^ set(other)))}"
    for name in sorted(one, key=lambda name: (name not in ("success", "clean_pred", "adv_pred"), name)):
        if one[name].shape != other[name].shape:
            return f"{name} has another shape"
        if not np.array_equal(one[name], other[name]):
            return f"{name} differs on {int((one[name] != other[name]).reshape(len(one[name]), -1).any(1).sum())} examples"
    return ""


def _take(source: Cell, cell: Cell, origin: Origin, summary: Summary) -> None:
    lease = Lease.acquire(cell.folder)
    if lease is None:
        raise InvalidBundle(f"a run is working on {_named(cell)}", hint="import when it has ended")
    with lease:
        if cell.load_what_is_whole().status != "missing":
            raise InvalidBundle(f"a run began on {_named(cell)} meanwhile", hint="import again when it has ended")
        cell.write_origin(origin)  # first: what is interrupted here is known by it
        cell.write_attempt(summary.environment, summary.seconds)
        shards = _copy_arrays(source, cell)
        _copy_examples(source, cell, shards)


def remove_bundle(store: Store, sha256: str) -> list[str]:
    """Remove the results that came in a bundle; returns their keys. What was run here stays."""
    keys = [cell.key for cell in store.cells() if (origin := cell.origin) is not None and origin.bundle == sha256]
    for key in keys:
        incoming.remove_cell(store.path, key)
    return keys


def _named(cell: Cell) -> str:
    return f"result {cell.key[:12]} ({cell.spec['defense']['label']} under {cell.spec['attack']['label']})"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

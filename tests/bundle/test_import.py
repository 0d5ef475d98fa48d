"""Into the store and out of it: all or nothing, once, and never in place of something else."""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robustbench_lite import attempt as attempts
from robustbench_lite import cell as cells
from robustbench_lite.bundle import import_bundle, opened
from robustbench_lite.errors import InvalidBundle, StoreError
from robustbench_lite.lease import Lease, storage_error
from robustbench_lite.provenance import SELF_REPORTED
from robustbench_lite.store import Store
from tests.bundle.conftest import RUN
from tests.forging import Arrays, named
from tests.support import invoke


def test_what_goes_in_comes_out(several: Path, made: Path, tmp_path: Path) -> None:
    mine = Store.open(tmp_path / "mine")
    found = import_bundle(several, mine)
    assert len(found.new) == 4
    assert not found.known
    for theirs in Store.open(made).cells():
        cell, result = mine.get(theirs.key), theirs.load()
        taken = cell.load()
        assert taken.status == "done"
        assert taken.seconds == result.seconds
        assert taken.environment == {k: v for k, v in result.environment.items() if k not in ("host", "pid")}
        assert {k: v.tolist() for k, v in taken.arrays.items()} == {k: v.tolist() for k, v in result.arrays.items()}
        images = zip(cell.examples(), theirs.examples(), strict=True)
        assert all(np.array_equal(ours[name], others[name]) for ours, others in images for name in others)
        assert cell.origin is not None
        assert cell.origin.status == SELF_REPORTED
        assert (cell.origin.by, cell.origin.where) == ("A. Nother", "https://example.org/results")
    assert mine.check() == []


def test_a_bundle_says_nothing_of_the_machine_it_was_made_on(several: Path) -> None:
    with zipfile.ZipFile(several) as archive:
        everything = b"".join(archive.read(name) for name in archive.namelist())
    assert os.uname().nodename.encode() not in everything or len(os.uname().nodename) < 4
    assert b"boot_id" not in everything
    assert b'"pid"' not in everything
    assert b'"host"' not in everything


def test_the_same_bundle_twice(several: Path, tmp_path: Path) -> None:
    mine = Store.open(tmp_path / "mine")
    first = import_bundle(several, mine)
    before = {p: p.stat().st_mtime_ns for p in mine.path.rglob("*.*") if p.is_file()}
    again = import_bundle(several, mine)
    assert again.known == first.new
    assert not again.new
    assert {p: p.stat().st_mtime_ns for p in mine.path.rglob("*.*") if p.is_file()} == before
    said = invoke("import", several, "--store", mine.path).out
    assert "0 results taken in" in said
    assert "4 were here already" in said


def test_what_was_run_here_stays_so(bundle: Path, made: Path) -> None:
    assert import_bundle(bundle, Store.open(made)).new == ()
    assert named(made).origin is None


def test_a_result_that_contradicts_one_that_was_run_here(forged: Callable[..., Path], made: Path) -> None:
    def costlier(arrays: Arrays) -> None:
        arrays["forwards"] += 1

    with pytest.raises(InvalidBundle, match="another result of mean under shift: forwards differs on 300 examples"):
        import_bundle(forged(arrays=costlier), Store.open(made))
    assert named(made).load().status == "done"


def test_one_conflict_keeps_everything_out(several: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    invoke(*RUN, "--defense", "toy/mean", "--attack", "toy/shift", "--store", mine)
    cell = named(mine)
    changed = cell.read_shard(0)
    changed["forwards"] = changed["forwards"] + 1
    cell.write_shard(0, changed)
    cell.commit(2)
    refused = invoke("import", several, "--store", mine, code=2).err
    assert "this store has another result of mean under shift" in refused
    assert "fix: rbl verify" in refused
    assert [each.key for each in Store.open(mine).cells()] == [cell.key]


def test_an_unfinished_run_and_one_that_is_under_way(bundle: Path, tmp_path: Path) -> None:
    mine = Store.open(tmp_path / "mine")
    with opened(bundle) as theirs:
        (source,) = theirs.store.cells()
        cell = mine.cell(source.spec)
        lease = Lease.acquire(cell.folder)
        assert lease is not None
        with lease, pytest.raises(InvalidBundle, match="a run is working on"):
            import_bundle(bundle, mine)
        cell.write_shard(0, source.read_shard(0))
    with pytest.raises(InvalidBundle, match="a run of mean under shift that is partial"):
        import_bundle(bundle, mine)
    assert cell.state(2).shards == {0}
    assert cell.origin is None


@pytest.mark.parametrize("writes", [1, 2, 4, 9, 14, 26, 36])
def test_killed_in_the_middle_nothing_has_come_in(several: Path, tmp_path: Path, writes: int) -> None:
    """The process dies at its n-th file. Readers see nothing of it, and the next who writes clears it away."""
    mine = tmp_path / "mine"
    Store.open(mine)
    child = os.fork()
    if child == 0:
        left = [writes]
        write = cells.write_file

        def deadly(*arguments: object, **options: object) -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            write(*arguments, **options)  # type: ignore[arg-type]

        cells.write_file = attempts.write_file = deadly
        import_bundle(several, Store.open(mine))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    reader = Store.open(mine, read_only=True)
    assert list(reader.cells()) == []
    again = Store.open(mine)
    assert list(again.cells()) == []
    assert not list(mine.rglob("*.safetensors"))
    assert not list(mine.rglob("origin.json"))
    assert len(import_bundle(several, again).new) == 4
    assert [message for message in again.check() if "spec.json" not in message] == []


def test_an_error_in_the_middle_takes_everything_back(several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Store.open(tmp_path / "mine")
    write, left = cells.write_file, [20]

    def full(path: Path, data: bytes, **options: bool) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise storage_error(OSError(28, "No space left on device"), path)
        write(path, data, **options)

    with monkeypatch.context() as patch:
        for module in (cells, attempts):
            patch.setattr(module, "write_file", full)
        with pytest.raises(StoreError, match="no room"):
            import_bundle(several, mine)
    assert list(mine.cells()) == []
    assert not list(mine.path.rglob("*.safetensors"))


def test_an_origin_that_cannot_be_read_is_not_taken_for_a_run_here(bundle: Path, tmp_path: Path) -> None:
    mine = Store.open(tmp_path / "mine")
    import_bundle(bundle, mine)
    cell = named(mine.path)
    path = cell.folder / "origin.json"
    path.write_text(path.read_text().replace("self", "sulf").replace("A. Nother", "A. Mother"))
    assert cell.origin is not None
    assert cell.origin.status == SELF_REPORTED
    assert "cannot be read" in cell.origin.said


def test_imported_results_are_not_handed_on_as_ones_own(bundle: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    import_bundle(bundle, Store.open(mine))
    refused = invoke("export", tmp_path / "out.zip", "--store", mine, code=2).err
    assert "1 result left out: imported" in refused
    assert not (tmp_path / "out.zip").exists()


def test_smallest_perturbations_are_exported_for_any_radius(made: Path, tmp_path: Path) -> None:
    for threat, count in (("linf:0.08", 4), ("linf:0.07", 2)):
        said = invoke("export", tmp_path / f"{threat[-2:]}.zip", "--store", made, "--threat", threat).out
        assert f"{count} results" in said


def test_what_cannot_be_exported(made: Path, bundle: Path, tmp_path: Path) -> None:
    assert "is there already" in invoke("export", bundle, "--store", made, code=1).err
    nothing = invoke("export", tmp_path / "out.zip", "--store", made, "--defense", "nobody", code=2).err
    assert "no whole results" in nothing
    assert "no results in" in invoke("export", tmp_path / "out.zip", "--store", tmp_path, code=2).err


def test_taking_a_bundle_out_again(several: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    invoke(*RUN, "--defense", "toy/mean", "--attack", "toy/shift", "--store", mine)
    invoke("import", several, "--store", mine)
    assert len(list(Store.open(mine).cells())) == 4
    assert "3 results removed" in invoke("import", several, "--remove", "--store", mine).out
    assert [cell.origin for cell in Store.open(mine).cells()] == [None]


def test_paths_that_are_nothing(tmp_path: Path) -> None:
    assert "is not there" in invoke("import", tmp_path / "nothing.zip", "--store", tmp_path / "s", code=2).err
    assert not (tmp_path / "s").exists()

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_lite import cell as module
from robustbench_lite.cell import Cell
from robustbench_lite.errors import AmbiguousName, CorruptResult, InvalidParameter, StoreError, StoreFormatError, UnknownName
from robustbench_lite.keys import canonical_json, cell_key
from robustbench_lite.results import CellResult
from robustbench_lite.store import Store

SPEC: dict[str, Any] = {
    "format": 1,
    "attack": {"id": "rbl/pgd", "parameters": {"steps": 10}},
    "threat": "linf:8/255",
    "seed": 0,
}
N = 4  # rows per shard in these tests

# What the scripts that tests run in other processes start with.
PRELUDE = """
import sys
from pathlib import Path
import numpy as np
from robustbench_lite.errors import StoreError
from robustbench_lite.store import Store

def arrays(number, value=0.0, n=4):
    index = np.arange(n, dtype=np.int64) + n * number
    return {"index": index, "size": np.full(n, value) + index / 7, "success": index % 2 == 0}
"""


def arrays(number: int, value: float = 0.0, n: int = N) -> dict[str, np.ndarray]:
    index = np.arange(n, dtype=np.int64) + n * number
    return {"index": index, "size": np.full(n, value) + index / 7, "success": index % 2 == 0}


def script(body: str, *args: object) -> list[str]:
    return [sys.executable, "-c", PRELUDE + textwrap.dedent(body), *map(str, args)]


def finished(store: Store, spec: dict[str, Any] = SPEC, shards: int = 3) -> Cell:
    cell = store.cell(spec)
    attempt = cell.begin_attempt({"host": "here", "packages": {"torch": "2.13"}})
    for i in range(shards):
        cell.write_shard(i, arrays(i), n=N)
        attempt.update(shard=i)
    cell.commit(shards)
    attempt.finish("done")
    return cell


def same(left: dict[str, np.ndarray] | Any, right: dict[str, np.ndarray] | Any) -> bool:
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and left[k].shape == right[k].shape and left[k].tobytes() == right[k].tobytes()
        for k in left
    )


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".tmp-*"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


# Keys

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
SPECS = st.dictionaries(st.text(max_size=5), PLAIN, max_size=4)


def reordered(value: Any, rng: random.Random) -> Any:
    """The same spec in another spelling: keys in another order, tuples for lists, floats for whole numbers."""
    if isinstance(value, dict):
        items = [(key, reordered(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    if isinstance(value, list):
        return tuple(reordered(item, rng) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return value


@given(SPECS, st.randoms(use_true_random=False))
def test_one_spec_has_one_key_however_it_is_spelt(spec: dict[str, Any], rng: random.Random) -> None:
    text = canonical_json(spec)
    assert canonical_json(reordered(spec, rng)) == text
    assert canonical_json(json.loads(text)) == text
    assert canonical_json(json.loads(json.dumps(spec, indent=3))) == text
    assert text.isascii()


@given(SPECS, SPECS)
def test_other_specs_have_other_keys(left: dict[str, Any], right: dict[str, Any]) -> None:
    # Decided without the code under test: whole floats to integers, booleans and None tagged, then Python's own equality.
    def tagged(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tagged(item) for key, item in value.items()}
        if isinstance(value, list):
            return [tagged(item) for item in value]
        big_float = isinstance(value, float) and abs(value) >= 2**53
        return (("bool" if isinstance(value, bool) else "float" if big_float else ""), value)

    assert (cell_key(left) == cell_key(right)) == (tagged(left) == tagged(right))


@pytest.mark.parametrize("spelling", ["0.1", "0.10", "1e-1", "10E-2", "0.1000000000000000055"])
def test_spellings_of_a_float(spelling: str) -> None:
    assert canonical_json({"eps": json.loads(spelling)}) == '{"eps":0.1}'


def test_known_key() -> None:
    # Fixed for ever: stored results are found by it.
    assert canonical_json({"b": [1.0, -0.0, None], "a": "ü"}) == '{"a":"\\u00fc","b":[1,0,null]}'
    assert cell_key({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (np.float32(1), "float32"),
        (np.int64(1), "int64"),
        ({1: 2}, "1"),
        (Path("x"), "Path"),
        ({1, 2}, "set"),
        (b"x", "bytes"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_place(value: Any, said: str) -> None:
    with pytest.raises(InvalidParameter, match=rf"spec\.a\[1\].*{said}"):
        canonical_json({"a": [0, value]})


# Storing and reading


def test_layout_on_disk(store: Store) -> None:
    cell = store.cell(SPEC)
    assert not any(store.path.glob("cells/*"))  # nothing before the first write
    finished(store)
    cell.write_examples(0, {"x_adv": np.zeros((N, 1, 2, 2), np.float32)})
    key = cell_key(SPEC)
    folder = store.path / "cells" / key[:2] / key
    assert (store.path / "FORMAT").read_text() == "robustbench-lite store 1\n"
    assert json.loads((folder / "spec.json").read_text()) == SPEC
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "spec.json",
        "done.json",
        "columns.safetensors",
        "attempts",
        *(f"shard-0000{i}.safetensors" for i in range(3)),
    }
    (attempt,) = (folder / "attempts").iterdir()
    assert json.loads(attempt.read_text())["status"] == "done"
    assert [entry["shard"] for entry in json.loads(attempt.read_text())["progress"]] == [0, 1, 2]
    assert (store.path / "examples" / key[:2] / key / "shard-00000.safetensors").exists()
    assert store.check() == []


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32", "float64", ">f8", "float16"])
def test_round_trip_of_every_kind_of_array(store: Store, dtype: str) -> None:
    rng = np.random.default_rng(0)
    value = (rng.normal(size=(2 * N, 3)) * 9).astype(dtype)
    if value.dtype.kind == "f":
        value[0] = [np.inf, -np.inf, np.nan]
    cell = store.cell(SPEC)
    cell.write_shard(0, {"a": value[::2], "b": np.arange(N)}, n=N)  # not contiguous
    found = cell.read_shard(0)
    np.testing.assert_array_equal(found["a"], value[::2])
    assert found["a"].dtype == value.dtype.newbyteorder("<")
    cell.commit(1)
    assert store.cell(SPEC).load().arrays["a"].shape == (N, 3)


def test_damage_is_raised_every_time(store: Store) -> None:
    damage(finished(store).folder / "shard-00001.safetensors")
    cell = Store.open(store.path, read_only=True).cell(SPEC)
    for _ in range(3):
        with pytest.raises(CorruptResult):
            cell.load()
    assert len(cell.store.messages) == 2  # the shard, and the commit that vouched for it: each said once


def test_a_done_cell_is_loaded_whole(store: Store) -> None:
    finished(store)
    result = Store.open(store.path, read_only=True).get(cell_key(SPEC)[:6]).load()
    assert isinstance(result, CellResult)
    assert (result.status, result.reason, result.attempts, result.spec) == ("done", "", 1, SPEC)
    assert result.environment == {"host": "here", "packages": {"torch": "2.13"}}
    assert result.seconds > 0
    expected = {name: np.concatenate([arrays(i)[name] for i in range(3)]) for name in arrays(0)}
    assert same(result.arrays, expected)
    assert result.n == 3 * N


def test_bytes_on_disk_depend_on_contents_alone(tmp_path: Path) -> None:
    code = """
    ordered = dict(sorted(arrays(0).items(), reverse=sys.argv[2] == "backwards"))
    Store.open(sys.argv[1]).cell({"a": 1}).write_shard(0, ordered, n=4)
    """
    for name, order in (("one", "backwards"), ("two", "forwards")):
        subprocess.run(script(code, tmp_path / name, order), check=True)
    one, two = (next((tmp_path / name).rglob("shard-*")).read_bytes() for name in ("one", "two"))
    assert one == two


def test_states_on_the_way(store: Store) -> None:
    cell = store.cell(SPEC)
    assert cell.state(2).status == "new"
    assert cell.load().status == "missing"
    attempt = cell.begin_attempt({})
    assert cell.state(2).status == "new"
    assert "worked on" in cell.state(2).reason
    cell.write_shard(1, arrays(1), n=N)
    state = cell.state(2)
    assert (state.status, state.shards, state.attempts) == ("partial", frozenset({1}), 1)
    assert cell.load().status == "partial"
    assert list(cell.load().arrays["index"]) == [4, 5, 6, 7]
    attempt.finish("timeout", "longer than 60 s")
    assert (cell.state(2).status, cell.state(2).reason, cell.state(2).shards) == (
        "timeout",
        "longer than 60 s",
        frozenset({1}),
    )
    assert (cell.load().status, cell.load().n) == ("timeout", N)
    second = cell.begin_attempt({})
    cell.write_shard(0, arrays(0), n=N)
    with pytest.raises(StoreError, match="3 shards asked for"):
        cell.commit(3)
    cell.commit(2)
    second.finish("done")
    assert (cell.state(2).status, cell.state(2).shards, cell.state(2).attempts) == ("done", frozenset({0, 1}), 2)
    assert list(cell.load().arrays["index"]) == list(range(8))


def test_seconds_are_summed_over_attempts(store: Store) -> None:
    cell = store.cell(SPEC)
    total = 0.0
    for _ in range(3):
        attempt = cell.begin_attempt({})
        time.sleep(0.01)
        attempt.finish("error", "no")
        total += json.loads(attempt.path.read_text())["seconds"]
    assert total >= 0.03
    assert cell.load().seconds == pytest.approx(total)


@pytest.mark.parametrize(
    "bad",
    [{}, {"a": np.zeros(N), "b": np.zeros(N + 1)}, {"a": np.array("x")}, {"a": np.array(["x"] * N)}, {"a": np.zeros(N - 1)}],
)
def test_arrays_that_do_not_fit_are_refused(store: Store, bad: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"arrays|rows"):
        store.cell(SPEC).write_shard(0, bad, n=N)
    assert store.cell(SPEC).state(1).status == "new"


def test_salvage_is_no_result(store: Store) -> None:
    cell = store.cell(SPEC)
    cell.write_shard(0, arrays(0), n=N)
    cell.write_salvage(1, arrays(1))
    assert (cell.state(2).shards, cell.load().n) == (frozenset({0}), N)
    salvaged = cell.salvaged()
    assert salvaged is not None
    assert same(salvaged, arrays(1))
    with pytest.raises(StoreError, match="cannot be done"):
        cell.commit(2)
    cell.write_shard(1, arrays(1), n=N)  # the whole shard replaces it
    assert cell.salvaged() is None
    assert not list(cell.folder.glob("*salvage*"))


def test_examples(store: Store) -> None:
    cell = finished(store)
    x = np.random.default_rng(0).random((N, 3, 5, 5), dtype=np.float32)
    cell.write_examples(1, {"x_adv": x})
    np.testing.assert_array_equal(store.cell(SPEC).read_examples(1)["x_adv"], x)
    with pytest.raises(StoreError, match="no examples 0"):
        cell.read_examples(0)
    damage(cell.examples_folder / "shard-00001.safetensors")
    with pytest.raises(CorruptResult):
        cell.read_examples(1)
    assert cell.state(3).status == "done"  # they are no part of the result


def test_cells_are_found_by_key(store: Store) -> None:
    specs = [{"i": i} for i in range(40)]
    for spec in specs:
        store.cell(spec).write_spec()
    keys = [cell.key for cell in store.cells()]
    assert keys == sorted(cell_key(spec) for spec in specs)
    assert {cell.spec["i"] for cell in store.cells()} == set(range(40))
    assert store.get(keys[7]).spec == next(s for s in specs if cell_key(s) == keys[7])
    with pytest.raises(UnknownName):
        store.get("no such")
    with pytest.raises(AmbiguousName):
        store.get("")
    wanted = list(store.results(lambda spec: spec["i"] < 3))
    assert sorted(result.spec["i"] for result in wanted) == [0, 1, 2]
    assert {result.status for result in wanted} == {"missing"}


def test_strays_are_passed_over_and_reported(store: Store) -> None:
    cell = finished(store)
    (store.path / "notes.txt").write_text("mine")
    (store.path / "cells" / "zz").mkdir()
    (store.path / "cells" / cell.key[:2] / "desktop.ini").write_text("")
    (cell.folder / "shard-0.safetensors").write_text("")
    (cell.folder / ".tmp-00000000-1-ab").write_text("half")
    orphan = store.path / "cells" / "ab" / ("ab" + "0" * 62)
    orphan.mkdir(parents=True)
    assert [c.key for c in store.cells()] == [cell.key]
    assert cell.load().status == "done"
    said = "\n".join(store.check())
    for name in ("notes.txt", "desktop.ini", "shard-0.safetensors", ".tmp-00000000-1-ab", orphan.name):
        assert name in said
    assert (store.path / "notes.txt").exists()


# Opening


def test_open_makes_a_store_once(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no result store"):
        Store.open(tmp_path / "a" / "b", create=False)
    with pytest.raises(StoreError, match="no result store"):
        Store.open(tmp_path / "a" / "b", read_only=True)
    Store.open(tmp_path / "a" / "b")
    Store.open(tmp_path / "a" / "b", create=False)
    Store.open(str(tmp_path / "a" / "b"), read_only=True)


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda p: (p / "FORMAT").write_text("robustbench-lite store 2\n"), StoreFormatError, "format 2"),
        (lambda p: (p / "FORMAT").write_text("robustbench-lite store 10\n"), StoreFormatError, "reads store format 10"),
        (lambda p: (p / "FORMAT").write_bytes(b"\xff\x00"), StoreFormatError, "not that of a result store"),
        (lambda p: (p / "thesis.tex").write_text(""), StoreFormatError, "no FORMAT file"),
        (lambda p: (p / "cells").mkdir(), StoreFormatError, "no FORMAT file"),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_open_refuses_other_folders(
    tmp_path: Path, make: Callable[[Path], Any], kind: type[Exception], said: str, read_only: bool
) -> None:
    make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(kind, match=said):
        Store.open(tmp_path, read_only=read_only)
    assert sorted(tmp_path.iterdir()) == before


def test_files_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        Store.open(tmp_path / "file")
    with pytest.raises(StoreError, match="in the way"):
        Store.open(tmp_path / "file" / "below")
    store = Store.open(tmp_path / "store")
    (store.path / "cells").write_text("")
    with pytest.raises(StoreError, match="in the way"):
        Store.open(store.path)
    with pytest.raises(StoreError, match="in the way"):
        store.cell(SPEC).write_spec()


def test_a_store_half_made_is_completed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-00000000-1-ab").write_text("robust")  # killed while it wrote FORMAT
    assert Store.open(tmp_path).read_only is False


def test_read_only_writes_nothing(tmp_path: Path) -> None:
    finished(Store.open(tmp_path))
    store = Store.open(tmp_path, read_only=True)
    cell = store.cell(SPEC)
    for write in (
        cell.write_spec,
        lambda: cell.write_shard(0, arrays(0), n=N),
        lambda: cell.write_salvage(0, arrays(0)),
        lambda: cell.write_examples(0, arrays(0)),
        lambda: cell.commit(3),
        lambda: cell.begin_attempt({}),
        lambda: cell.end_attempts("crashed", ""),
    ):
        with pytest.raises(StoreError, match="reading only"):
            write()
    assert cell.load().status == "done"


# Damage


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def rewritten(path: Path, change: Callable[[Cell], None]) -> None:
    """Put in place a file that is whole, but is not the one that belongs there."""
    other = Store.open(path.parent.parent.parent.parent.parent / "other")
    cell = other.cell(SPEC)
    change(cell)
    shutil.copy(cell.folder / "shard-00000.safetensors", path)


def other_rows(path: Path) -> None:
    rewritten(path, lambda cell: cell.write_shard(0, arrays(1, n=N + 1), n=N + 1))


def other_number(path: Path) -> None:
    shutil.copy(path.with_name("shard-00002.safetensors"), path)


@pytest.mark.parametrize("harm", [damage, truncate, empty, Path.unlink, other_number])
@pytest.mark.parametrize("committed", [True, False])
def test_a_damaged_shard_costs_only_itself(store: Store, harm: Callable[[Path], None], committed: bool) -> None:
    cell = finished(store)
    if not committed:
        (cell.folder / "done.json").unlink()
    victim = cell.folder / "shard-00001.safetensors"
    harm(victim)

    reader = Store.open(store.path, read_only=True)
    before = sorted(store.path.rglob("*"))
    if committed or harm is not Path.unlink:  # a shard that is not there yet is no damage
        with pytest.raises(CorruptResult, match="shard-00001"):
            reader.cell(SPEC).load()
        with pytest.raises(CorruptResult) as caught:  # and again: reading on does not make it better
            reader.cell(SPEC).load()
        assert "rbl run" in caught.value.hint
    (result,) = reader.results()
    assert result.status == "partial"
    assert list(result.arrays["index"]) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert sorted(store.path.rglob("*")) == before  # a reader moves nothing

    result = store.cell(SPEC).load()
    assert result.status == "partial"
    assert list(result.arrays["index"]) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert not (store.cell(SPEC).folder / "done.json").exists()
    state = store.cell(SPEC).state(3)
    assert (state.status, state.shards) == ("partial", frozenset({0, 2}))
    if harm is not Path.unlink:
        assert any("shard-00001" in message for message in store.messages)
        (reason,) = store.path.glob("quarantine/*/*shard-00001.safetensors.reason.txt")
        assert "shard-00001" in reason.read_text()
        assert reason.with_name(reason.name.removesuffix(".reason.txt")).exists()
    elif committed:
        assert any("gone" in message for message in store.messages)

    finished(store)  # the repair
    assert store.cell(SPEC).load().status == "done"


@pytest.mark.parametrize("harm", [truncate, Path.unlink, other_rows])
def test_state_notices_without_reading_contents(store: Store, harm: Callable[[Path], None]) -> None:
    cell = finished(store)
    harm(cell.folder / "shard-00000.safetensors")
    assert store.cell(SPEC).state(3).status == "partial"
    assert not (cell.folder / "done.json").exists()


def test_state_does_not_read_the_shards_of_a_done_cell(store: Store) -> None:
    cell = finished(store)
    for i in range(3):
        path = cell.folder / f"shard-0000{i}.safetensors"
        path.write_bytes(bytes(path.stat().st_size))
    assert store.cell(SPEC).state(3).status == "done"  # what it may trust
    result = store.cell(SPEC).load()  # what nothing escapes
    assert (result.status, result.n) == ("partial", 0)
    assert len(list(store.path.glob("quarantine/*/*.safetensors"))) == 3


def test_a_commit_of_another_number_of_shards_is_none(store: Store) -> None:
    finished(store, shards=2)
    state = store.cell(SPEC).state(3)
    assert (state.status, state.shards) == ("partial", frozenset({0, 1}))


def test_shards_with_other_arrays_are_not_mixed(store: Store) -> None:
    cell = store.cell(SPEC)
    cell.write_shard(0, arrays(0), n=N)
    cell.write_shard(1, {**arrays(1), "success": np.zeros(N)}, n=N)
    with pytest.raises(StoreError, match="cannot be done"):
        cell.commit(2)
    assert cell.state(2).shards == {0}
    assert "other arrays" in store.messages[0]


@pytest.mark.parametrize("newer", [0, 1])
def test_a_cell_begun_before_more_arrays_were_stored_is_finished(store: Store, newer: int) -> None:
    cell = store.cell(SPEC)
    for number in (0, 1):
        cell.write_shard(number, arrays(number) | ({"more": np.zeros((N, 2))} if number == newer else {}), n=N)
    cell.commit(2)
    result = store.cell(SPEC).load()
    assert (result.status, result.n) == ("done", 2 * N)
    assert set(result.arrays) == set(arrays(0))


@pytest.mark.parametrize("text", ["{}", "[]", "", '{"format": 1}', "\x00", "[" * 100_000, '{"a": 1e999}'])
@pytest.mark.parametrize("name", ["done.json", "spec.json"])
def test_a_damaged_marker_is_no_marker(store: Store, name: str, text: str) -> None:
    cell = finished(store)
    (cell.folder / name).write_text(text)
    again = store.cell(SPEC)
    assert again.load().status == "partial"
    assert again.load().n == 3 * N  # the shards are whole
    assert any(name in message for message in store.messages)
    again.commit(3)
    assert Store.open(store.path, read_only=True).cell(SPEC).load().status == "done"
    assert Store.open(store.path).check() == []


def test_a_spec_in_the_wrong_folder_is_no_cell(store: Store) -> None:
    cell, other = finished(store), finished(store, {"other": 1})
    shutil.copy(other.folder / "spec.json", cell.folder / "spec.json")
    reader = Store.open(store.path, read_only=True)
    assert [c.key for c in reader.cells()] == [other.key]
    assert other.key[:12] in reader.messages[0]
    with pytest.raises(CorruptResult):
        reader.get(cell.key)
    assert [c.key for c in store.cells()] == [other.key]
    assert not (cell.folder / "spec.json").exists()
    assert not (cell.folder / "done.json").exists()
    assert store.cell(SPEC).state(3).shards == {0, 1, 2}


def test_files_of_a_newer_format_are_not_guessed_at(store: Store) -> None:
    cell = finished(store)
    shard = cell.folder / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b'\\"format\\": 1', b'\\"format\\": 2'))
    assert cell.load().n == 2 * N
    assert "format 2 instead of 1" in "".join(store.messages)


def test_a_shard_that_claims_other_rows_is_damaged(store: Store) -> None:
    shard = finished(store).folder / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b'\\"n\\": 4', b'\\"n\\": 5'))
    with pytest.raises(CorruptResult, match="5 rows expected"):
        store.cell(SPEC).read_shard(1)
    assert store.cell(SPEC).state(3).shards == {0, 2}


@pytest.mark.parametrize("name", ["done.json", "attempts/*.json"])
def test_every_flipped_bit_of_a_record_shows(store: Store, name: str) -> None:
    cell = finished(store)
    (path,) = cell.folder.glob(name)
    data = path.read_bytes()
    original = cell.load()
    reader = Store.open(store.path, read_only=True).cell(SPEC)
    rng = random.Random(0)
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        try:
            assert (found := reader.load()).seconds == original.seconds
            assert (found.status, found.environment) == (original.status, original.environment)
            assert data[place : place + 1].isspace()
        except CorruptResult:
            pass


def test_every_flipped_bit_of_a_shard_shows(store: Store) -> None:
    cell = finished(store, shards=1)
    path = cell.folder / "shard-00000.safetensors"
    data = path.read_bytes()
    reader = Store.open(store.path, read_only=True).cell(SPEC)
    rng = random.Random(0)
    unnoticed = []
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        try:
            assert same(reader.read_shard(0), arrays(0))
            unnoticed.append(place)
        except CorruptResult:
            pass
    assert len(unnoticed) < 16  # padding of the header at most; `load` sees those too, by done.json


def test_every_truncation_of_a_shard_shows(store: Store) -> None:
    cell = finished(store, shards=1)
    path = cell.folder / "shard-00000.safetensors"
    data = path.read_bytes()
    reader = Store.open(store.path, read_only=True).cell(SPEC)
    for length in [*range(len(data)), len(data) + 1, len(data) + 100]:
        path.write_bytes((data + bytes(100))[:length])
        with pytest.raises(CorruptResult):
            reader.read_shard(0)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "store"
    finished(Store.open(path))
    return path


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_harm_is_never_silent(template: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    original = Store.open(template, read_only=True).cell(SPEC).load()
    path = tmp_path_factory.mktemp("harmed") / "store"
    shutil.copytree(template, path)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "FORMAT")
    victim = data.draw(st.sampled_from(files))
    raw = bytearray(victim.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    victim.write_bytes(raw)

    def equal(result: CellResult) -> bool:
        facts = ("key", "spec", "status", "reason", "seconds", "attempts", "environment")
        return same(result.arrays, original.arrays) and all(getattr(result, f) == getattr(original, f) for f in facts)

    reader = Store.open(path, read_only=True).cell(SPEC)
    try:
        assert equal(reader.load())
    except CorruptResult:
        assert reader.damage
    store = Store.open(path)
    result = store.cell(SPEC).load()
    assert equal(result) or any(victim.name in message for message in store.messages)
    kept = np.isin(original.arrays["index"], result.arrays.get("index", []))
    assert same(result.arrays, {name: a[kept] for name, a in original.arrays.items()} if kept.any() else {})
    assert result.n >= 2 * N


def test_a_damaged_attempt_does_not_cost_the_result(store: Store) -> None:
    cell = finished(store)
    (path,) = (cell.folder / "attempts").iterdir()
    path.write_text("{")
    result = cell.load()
    assert (result.status, result.n, result.seconds) == ("done", 3 * N, 0)
    assert path.name in store.messages[0]


# Full and read-only disks


@pytest.mark.parametrize(
    ("call", "number", "said"),
    [
        ("fsync", errno.ENOSPC, "no room.*bytes needed.*free there"),
        ("replace", errno.EDQUOT, "no room"),
        ("fsync", errno.EROFS, "no permission"),
        ("replace", errno.EACCES, "no permission"),
        ("fsync", errno.EIO, "cannot read or write"),
    ],
)
def test_a_disk_that_fails_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, number: int, said: str
) -> None:
    cell = store.cell(SPEC)
    cell.write_shard(0, arrays(0), n=N)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for number_ in (0, 1):
            with pytest.raises(StoreError, match=said):
                cell.write_shard(number_, arrays(number_, value=1), n=N)
    assert not leftovers(store.path)
    assert same(cell.read_shard(0), arrays(0))
    assert cell.state(2).shards == {0}


LIMITED = """
import resource
store = Store.open(sys.argv[1])
cell = store.cell({"a": 1})
cell.write_shard(0, arrays(0), n=4)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    cell.write_shard(1, arrays(1, n=1000), n=1000)
except StoreError as error:
    assert "no room" in str(error) and "run the same command again" in error.hint, error
else:
    raise SystemExit("stored in spite of the limit")
assert cell.state(2).shards == {0} and not store.check(), store.check()
"""


def test_a_file_size_limit(tmp_path: Path) -> None:
    subprocess.run(script(LIMITED, tmp_path / "store"), check=True)


FULL = """
store = Store.open(sys.argv[1] + "/store")
written = 0
try:
    for i in range(100):
        cell = store.cell({"i": i})
        attempt = cell.begin_attempt({})
        for shard in range(2):
            cell.write_shard(shard, arrays(shard, n=500), n=500)
            written += 1
        cell.commit(2)
        attempt.finish("done")
except StoreError as error:
    assert "no room" in str(error), error
else:
    raise SystemExit("the disk did not fill")
assert written > 2, written
assert not list(store.path.rglob(".tmp-*"))
results = list(Store.open(store.path, read_only=True).results())
assert sum(result.n for result in results) == 500 * written
assert {r.status for r in results[:-1]} <= {"done", "partial", "missing"}
assert not [m for m in Store.open(store.path, read_only=True).check() if "spec.json" not in m]
"""

READ_ONLY = """
import subprocess
store = Store.open(sys.argv[1] + "/store")
cell = store.cell({"a": 1})
cell.write_shard(0, arrays(0), n=4)
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
reader = Store.open(store.path, read_only=True)
assert reader.cell({"a": 1}).load().n == 4
from robustbench_lite.lease import Lease
for write in (lambda: Store.open(store.path), lambda: cell.write_shard(1, arrays(1), n=4), lambda: Lease.acquire(cell.folder)):
    try:
        write()
    except StoreError as error:
        assert "no permission" in str(error) and "may write" in error.hint, error
    else:
        raise SystemExit("written in spite of the mount")
"""


@pytest.mark.parametrize("body", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_on_a_small_disk_of_its_own(tmp_path: Path, body: str) -> None:
    """In a mount namespace of its own, so that nothing stays mounted whatever happens."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mount = [*unshare, "sh", "-c", 'mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"', str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    done = subprocess.run([*mount, *script(body, tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    finished(Store.open(tmp_path))
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StoreError, match="no permission"):
            Store.open(tmp_path)
        assert Store.open(tmp_path, read_only=True).cell(SPEC).load().status == "done"
    finally:
        tmp_path.chmod(0o755)


# Death and company

WRITER = """
store = Store.open(sys.argv[1])
print("ready", flush=True)
for i in range(int(sys.argv[2]), 10**6):
    cell = store.cell({"i": i})
    attempt = cell.begin_attempt({"i": i})
    for shard in range(3):
        if shard not in cell.state(3).shards:
            cell.write_shard(shard, arrays(shard, value=i), n=4)
            cell.write_examples(shard, arrays(shard, value=i))
    cell.commit(3)
    attempt.finish("done")
"""


def test_sigkill_at_any_moment_leaves_the_store_whole(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "store"
    next_cell, statuses = 0, set()
    for _ in range(20):
        writer = subprocess.Popen(script(WRITER, path, next_cell), stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.15))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        store = Store.open(path, read_only=True)
        for result in store.results():
            assert result.status in ("done", "partial", "missing")
            value = result.spec["i"]
            expected = {n: np.concatenate([arrays(i, value=value)[n] for i in range(3)])[: result.n] for n in arrays(0)}
            assert result.n == 3 * N or result.status != "done"
            assert same(result.arrays, expected if result.n else {})
            next_cell = max(next_cell, value)  # the next writer resumes what this one left
        assert store.messages == []
        statuses |= {result.status for result in store.results()}
    assert "partial" in statuses  # otherwise the kills came too early to prove anything
    store = Store.open(path)
    for i in range(next_cell + 2):  # one more may have a folder and no spec yet
        cell = store.cell({"i": i})
        attempt = cell.begin_attempt({})
        for shard in set(range(3)) - cell.state(3).shards:
            cell.write_shard(shard, arrays(shard, value=i), n=N)
        cell.commit(3)
        attempt.finish("done")
    assert store.check() == []  # leftovers of the dead included
    assert {result.status for result in store.results()} == {"done"}


def test_an_interrupted_attempt_is_no_failure_until_somebody_says_so(store: Store) -> None:
    body = "c = Store.open(sys.argv[1]).cell({'a': 1}); c.begin_attempt({}); c.write_shard(0, arrays(0), n=4)"
    writer = subprocess.Popen(script(body, store.path))
    writer.wait()
    cell = store.cell({"a": 1})
    state = cell.state(2)
    assert (state.status, state.shards) == ("partial", frozenset({0}))
    assert "interrupted" in state.reason
    assert cell.end_attempts("crashed", "killed by signal 9", pid=writer.pid + 1) == 0
    assert cell.end_attempts("crashed", "killed by signal 9", pid=writer.pid) == 1
    assert cell.end_attempts("crashed", "killed by signal 9", pid=writer.pid) == 0
    assert (cell.state(2).status, cell.load().reason) == ("crashed", "killed by signal 9")
    mine = cell.begin_attempt({})
    assert cell.end_attempts("crashed", "") == 0  # this process lives
    mine.finish("partial", "stopped by the user")
    assert (cell.state(2).status, cell.state(2).reason) == ("partial", "stopped by the user")


REWRITER = """
value, stop = float(sys.argv[2]), Path(sys.argv[3])
cell = Store.open(sys.argv[1]).cell({"a": 1})
times = 0
while not stop.exists():
    for shard in range(2):
        cell.write_shard(shard, arrays(shard, value=value + times), n=4)
    if sys.argv[4] == "commit":
        cell.commit(2)
    times += 1
print(times)
"""


def test_two_processes_writing_one_shard_leave_a_whole_one(store: Store, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    writers = [subprocess.Popen(script(REWRITER, store.path, v, stop, "no"), stdout=subprocess.PIPE) for v in (0, 10**6)]
    reader = Store.open(store.path, read_only=True).cell({"a": 1})
    seen, until = Counter[bool](), time.time() + 60
    while min(seen[False], seen[True]) < 5 and time.time() < until:
        for shard in reader.state(2).shards:
            found = reader.read_shard(shard)
            value = float(found["size"][0] - arrays(shard)["size"][0])
            assert np.allclose(found["size"], arrays(shard, value=value)["size"])
            seen[value >= 10**6] += 1
    stop.touch()
    assert [int(writer.communicate()[0]) >= 1 for writer in writers] == [True, True]
    assert min(seen[False], seen[True]) >= 5
    assert reader.store.messages == []
    assert store.cell({"a": 1}).state(2).shards == {0, 1}
    assert not leftovers(store.path)


def test_a_reader_beside_a_writer_sees_whole_commits_only(store: Store, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    writer = subprocess.Popen(script(REWRITER, store.path, 0, stop, "commit"), stdout=subprocess.PIPE)
    reader = Store.open(store.path, read_only=True).cell({"a": 1})
    commits, until = set(), time.time() + 60
    while len(commits) < 5 and time.time() < until:
        result = reader.load()
        if result.status == "done":
            values = result.arrays["size"] - np.concatenate([arrays(i)["size"] for i in range(2)])
            assert result.n == 2 * N
            assert np.allclose(values, values[0])  # never shards of two commits
            commits.add(round(values[0]))
    stop.touch()
    assert int(writer.communicate()[0]) >= 5
    assert len(commits) == 5
    assert reader.store.messages == []


def test_a_commit_replaced_while_it_is_read_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = finished(store), Store.open(store.path, read_only=True).cell(SPEC)
    read, pending = module.read_bytes, [True]

    def read_late(path: Path) -> bytes | None:
        if path.name == "shard-00001.safetensors" and pending:
            pending.clear()
            writer.write_shard(1, arrays(1, value=1), n=N)
            writer.commit(3)
        return read(path)

    monkeypatch.setattr(module, "read_bytes", read_late)
    result = reader.load()
    assert (result.status, reader.damage, pending) == ("done", [], [])
    assert same({n: a[N : 2 * N] for n, a in result.arrays.items()}, arrays(1, value=1))


def test_writing_the_same_again_keeps_the_commit_and_other_contents_withdraw_it(store: Store) -> None:
    cell = finished(store)
    cell.write_shard(1, arrays(1), n=N)
    assert cell.state(3).status == "done"
    cell.write_shard(1, arrays(1, value=1), n=N)
    assert (cell.state(3).status, cell.state(3).shards) == ("partial", frozenset({0, 1, 2}))


def test_results_keep_one_cell_in_memory(store: Store) -> None:
    for i in range(3):
        finished(store, {"i": i})
    results = store.results()
    first = next(results)
    shutil.rmtree(store.path / "cells" / first.key[:2])  # what was not asked for yet is not read yet
    remaining = [cell.key for cell in store.cells()]
    assert [result.key for result in results] == remaining
    assert 0 < len(remaining) < 3

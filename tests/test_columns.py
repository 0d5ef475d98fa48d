"""The small file that tables read: the same numbers as the shards, and never believed beyond the commit it was made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from robustbench_lite import columns
from robustbench_lite.cell import Cell
from robustbench_lite.errors import CorruptResult
from robustbench_lite.store import Store


def rows(start: int, n: int) -> dict[str, np.ndarray]:
    index = np.arange(start, start + n)
    return {
        "index": index,
        "success": index % 3 == 0,
        "size": np.where(index % 3 == 0, index / 100, np.inf),
        "forwards": index * 1000,
        "rejected": (index % 9).astype(np.uint8),
        "p_clean": (index / 1000).astype(np.float32),
        "logits_clean": np.outer(index, np.ones(3)).astype(np.float32),
    }


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    """A committed cell of two shards."""
    made = Store.open(tmp_path / "store").cell({"a": 1})
    made.write_shard(0, rows(0, 256))
    made.write_shard(1, rows(256, 44))
    made.commit(2)
    return made


def spoil(path: Path) -> None:
    """Change the last byte of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def same(cell: Cell) -> bool:
    """Whether what tables read is what the shards hold, to the type."""
    quick, whole = cell.load_for_tables(), cell.load_what_is_whole()
    assert (quick.status, quick.reason) == (whole.status, whole.reason)
    assert set(quick.arrays) == set(whole.arrays)
    return all(
        quick.arrays[name].dtype == array.dtype and np.array_equal(quick.arrays[name], array)
        for name, array in whole.arrays.items()
    )


def test_tables_read_the_same_numbers(cell: Cell) -> None:
    assert same(cell)
    found = cell.load_for_tables().arrays
    assert isinstance(found, columns.Columns)
    assert len(found) == len(rows(0, 1))
    assert "nothing" not in found
    with pytest.raises(KeyError):
        found["nothing"]


def test_shards_are_read_when_their_arrays_are_asked_for_and_not_before(cell: Cell) -> None:
    spoil(cell.folder / "shard-00001.safetensors")
    result = Store.open(cell.store.path, read_only=True).cell({"a": 1}).load_for_tables()
    assert result.status == "done"
    assert result.arrays["success"].sum() == 100
    assert "logits_clean" in result.arrays
    with pytest.raises(CorruptResult, match="shard-00001"):
        result.arrays["logits_clean"]


@pytest.mark.parametrize("damage", [spoil, Path.unlink, lambda path: path.write_bytes(b"")])
def test_without_the_file_or_with_a_damaged_one_the_shards_are_read(cell: Cell, damage) -> None:
    damage(cell.folder / columns.NAME)
    assert not isinstance(cell.load_for_tables().arrays, columns.Columns)
    assert same(cell)


def test_the_file_of_another_commit_is_not_believed(cell: Cell) -> None:
    earlier = (cell.folder / columns.NAME).read_bytes()
    changed = rows(0, 256)
    changed["success"][:] = False
    cell.write_shard(0, changed)
    assert cell.load_for_tables().status == "partial"  # the commit went with the change, whatever the file says
    cell.commit(2)
    (cell.folder / columns.NAME).write_bytes(earlier)
    assert cell.load_for_tables().arrays["success"].sum() == rows(256, 44)["success"].sum() == 14
    assert same(cell)


def test_a_shard_that_is_gone_is_not_made_up_for(cell: Cell) -> None:
    (cell.folder / "shard-00001.safetensors").unlink()
    result = cell.load_for_tables()
    assert result.status == "partial"
    assert result.n == 256


@given(
    arrays_of.arrays(
        st.sampled_from([np.int64, np.int32, np.uint8, np.uint64]), st.integers(1, 20), elements=st.integers(0, 127)
    ),
    st.integers(0, 2**62),
)
def test_whole_numbers_survive_the_smallest_type(values: np.ndarray, offset: int) -> None:
    shifted = values.astype(np.int64) + offset
    found = columns.narrowed({"index": shifted, "margin": np.ones(len(shifted)), "wide": np.ones((len(shifted), 2), np.int64)})
    assert set(found) == {"index"}
    assert np.array_equal(found["index"].astype(np.int64), shifted)
    assert found["index"].itemsize <= 8
    negative = columns.narrowed({"index": -shifted})["index"]
    assert np.array_equal(negative.astype(np.int64), -shifted)

"""The columns of a result that tables read, gathered in one small file when the result is committed.

A result over 10,000 examples lies in 40 shards with all that is known of each example; a table needs a tenth of it. The file
``columns.safetensors`` holds that tenth: every column of whole numbers or truth values, in the smallest type that holds it, and
``size``. It is derived, and no part of the commit that it names: where it is gone, damaged or of another commit, the shards are
read instead. Nothing else may be concluded from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

NAME = "columns.safetensors"

Arrays = Mapping[str, np.ndarray]


def is_column(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    """Whether an array with one row per example is a column that tables read; shape: of a row."""
    return not shape and (dtype.kind in "bui" or name == "size")


def narrowed(arrays: Arrays) -> dict[str, np.ndarray]:
    """Those of the arrays that are columns, whole numbers in the smallest type that holds them all."""
    found = {name: a for name, a in arrays.items() if is_column(name, a.dtype, a.shape[1:])}
    return {name: _narrow(a) if a.dtype.kind in "ui" and len(a) else a for name, a in found.items()}


def _narrow(array: np.ndarray) -> np.ndarray:
    low, high = int(array.min()), int(array.max())
    signed = [t for t in (np.int8, np.int16, np.int32, np.int64) if low >= np.iinfo(t).min and high <= np.iinfo(t).max]
    unsigned = [t for t in (np.uint8, np.uint16, np.uint32, np.uint64) if low >= 0 and high <= np.iinfo(t).max]
    kinds = [np.dtype(t) for t in (*unsigned, *signed)]
    return array.astype(min(kinds, key=lambda t: t.itemsize))


class Columns(Mapping[str, np.ndarray]):
    """The arrays of a result: its columns at once, and all others when one of them is asked for.

    types: dtype by name, of every array that the result has. ``rest`` reads them all.
    """

    def __init__(self, columns: Arrays, types: Mapping[str, str], rest: Callable[[], Arrays]) -> None:
        self._here = {name: np.asarray(array, dtype=types[name]) for name, array in columns.items()}
        self._types = types
        self._rest = rest
        self._read: Arrays | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._here:
            return self._here[name]
        if name not in self._types:
            raise KeyError(name)
        if self._read is None:
            self._read = self._rest()
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._types  # the default would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)

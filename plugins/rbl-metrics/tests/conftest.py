from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from robustbench_lite import CellResult


@pytest.fixture(scope="session")
def make_cell() -> Callable[..., CellResult]:
    """Cells by hand: ``sizes`` of the accepted points, inf where the example was not beaten; ``more`` arrays by name."""

    def make(
        sizes: Sequence[float],
        *,
        correct: Sequence[bool] | None = None,
        threat: str = "linf:0.1",
        index: Sequence[int] | None = None,
        forwards: Sequence[int] | None = None,
        backwards: Sequence[int] | None = None,
        attack: str = "a",
        seconds: float = 0.0,
        defense: str = "d",
        attack_spec: dict[str, Any] | None = None,
        **more: Any,
    ) -> CellResult:
        n = len(sizes)
        size = np.asarray(sizes, dtype=np.float64)
        arrays = {
            "index": np.arange(n) if index is None else np.asarray(index),
            "clean_correct": np.ones(n, dtype=bool) if correct is None else np.asarray(correct, dtype=bool),
            "success": np.isfinite(size),
            "size": size,
            "forwards": np.zeros(n, dtype=np.int64) if forwards is None else np.asarray(forwards),
            "backwards": np.zeros(n, dtype=np.int64) if backwards is None else np.asarray(backwards),
        }
        arrays |= {name: np.asarray(values) for name, values in more.items()}
        spec = {"threat": threat, "defense": {"label": defense}, "attack": {"label": attack, **(attack_spec or {})}}
        return CellResult(key=attack, spec=spec, arrays=arrays if n else {}, seconds=seconds)

    return make

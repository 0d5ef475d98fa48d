"""Cells by hand, and tables from them with the metrics that users install."""

from __future__ import annotations

import hashlib
import importlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import rbl_metrics
from robustbench_lite.leaderboard import Leaderboard, build_tables
from robustbench_lite.results import CellResult

N = 40


def find_metric(identifier: str) -> Any:
    """The metric of rbl-metrics with this id, as the registry would find it."""
    for spec in rbl_metrics.rbl_metrics():
        if f"rbl/{spec.name}" == identifier:
            module, _, name = spec.factory.partition(":")
            return getattr(importlib.import_module(module), name)()
    raise LookupError(identifier)


@pytest.fixture(scope="session")
def make_cell() -> Callable[..., CellResult]:
    """A cell: ``beaten`` lists the examples that the attack beats, at ``sizes`` (one number, or one for each)."""

    def make(
        defense: str = "d",
        attack: str = "a",
        beaten: Iterable[int] = (),
        *,
        n: int = N,
        sizes: float | Sequence[float] = 0.1,
        wrong: Iterable[int] = (),
        threat: str = "linf:0.15",
        status: str = "done",
        reason: str = "",
        rejected: Mapping[int, int] | None = None,
        unstable: int = 0,
        seconds: float = 1.5,
        stochastic: bool = False,
        weights: str | None = None,
        version: int = 1,
        subset: str = "s" * 64,
        index: Sequence[int] | None = None,
        dataset: str = "digits",
        protocol: Mapping[str, Any] | None = None,
        seed: int = 0,
        goal: str = "fixed-budget",
    ) -> CellResult:
        hit = sorted(beaten)
        correct = np.ones(n, dtype=bool)
        correct[list(wrong)] = False
        success = np.zeros(n, dtype=bool)
        success[hit] = True
        size = np.full(n, np.inf)
        size[hit] = sizes
        reasons = [code for code, times in (rejected or {}).items() for _ in range(times)]
        arrays = {
            "index": np.arange(n) if index is None else np.asarray(index),
            "y": np.zeros(n, dtype=np.int64),
            "clean_correct": correct,
            "success": success & correct,
            "size": size,
            "forwards": np.full(n, 20, dtype=np.int64),
            "backwards": np.full(n, 10, dtype=np.int64),
            "rejected": np.array(reasons + [0] * (n - len(reasons)), dtype=np.uint8),
            "unstable": np.arange(n) < unstable,
        }
        settings = {"name": "quick", "version": 1, "eot": 8, "eval_draws": 16, "budget": None, "n": N}
        spec = {
            "format": 1,
            "protocol": settings | dict(protocol or {}),
            "dataset": {
                "id": f"rbl/{dataset}",
                "version": 1,
                "parameters": {},
                "label": dataset,
                "fingerprint": "f" * 64,
                "subset": subset,
                "name": dataset,
            },
            "defense": {
                "id": f"rbl/{defense}",
                "version": version,
                "parameters": {},
                "weights": weights,
                "base": None,
                "label": defense,
                "stochastic": stochastic,
                "differentiable": True,
                "rejects": False,
            },
            "attack": {
                "id": f"rbl/{attack}",
                "version": 1,
                "parameters": {},
                "label": attack,
                "access": "gradient",
                "goal": "minimal-norm" if goal == "minimal-norm" or ":" not in threat else goal,
            },
            "threat": threat,
            "seed": seed,
        }
        key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
        stored = arrays if status in ("done", "partial") else {}
        return CellResult(key=key, spec=spec, arrays=stored, status=status, reason=reason, seconds=seconds, attempts=1)

    return make


@dataclass
class Held:
    """A result in memory, where leaderboards expect a store's cell."""

    result: CellResult

    @property
    def key(self) -> str:
        return self.result.key

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.result.spec

    def load_for_tables(self) -> CellResult:
        return self.result


@pytest.fixture(scope="session")
def tables() -> Callable[..., list[Leaderboard]]:
    """``build_tables`` with the metrics of rbl-metrics; ``shuffle`` reads the cells in another order."""

    def build(cells: Iterable[CellResult], *, shuffle: int | None = None, **options: Any) -> list[Leaderboard]:
        read = list(cells)
        if shuffle is not None:
            random.Random(shuffle).shuffle(read)
        return build_tables(map(Held, read), metric=options.pop("metric", find_metric), **options)

    return build


@pytest.fixture(scope="session")
def one(tables) -> Callable[..., Leaderboard]:
    """The only table of some cells."""

    def build(cells: Iterable[CellResult], **options: Any) -> Leaderboard:
        (table,) = tables(cells, **options)
        return table

    return build


@pytest.fixture(scope="session")
def varied(make_cell) -> list[CellResult]:
    """Cells with everything a renderer must show: ties, gaps, failures, refused proposals, a minimal-norm attack."""
    return [
        make_cell("strong", "apgd-ce", range(5), rejected={4: 3}),
        make_cell("strong", "fmn", range(8), sizes=np.linspace(0.05, 0.3, 8), threat="linf"),
        make_cell("strong", "square", range(2), unstable=1),
        make_cell("close", "apgd-ce", range(1, 7)),
        make_cell("close", "fmn", range(7), sizes=0.1, threat="linf"),
        make_cell("close", "square", [], rejected={6: 40}),
        make_cell("weak", "apgd-ce", range(40), wrong=range(4)),
        make_cell("weak", "fmn", range(40), wrong=range(4), sizes=0.02, threat="linf"),
        make_cell("weak", "square", range(30), wrong=range(4)),
        make_cell("noisy", "apgd-ce", range(20), wrong=[0], stochastic=True),
        make_cell("noisy", "fmn", range(20), wrong=[1], sizes=0.1, threat="linf", stochastic=True),
        make_cell("broken", "apgd-ce", range(3)),
        make_cell("broken", "fmn", status="crashed", reason="worker died with signal 11", threat="linf"),
        make_cell("broken", "square", range(3), n=16, status="partial"),
    ]

"""Adversarial images to look at: the image, what an attack made of it, and the difference."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from robustbench_lite.leaderboard.collect import Stored
from robustbench_lite.leaderboard.model import Leaderboard
from robustbench_lite.results import CellResult

PER_TABLE, PER_DEFENSE = 12, 2
MOST_BYTES = 2_000_000  # of images in a table's gallery: a page should still fit into an e-mail


class Illustrated(Stored, Protocol):
    """A stored result that may have images; ``store.Cell`` is one."""

    def examples(self) -> Iterator[dict[str, np.ndarray]]:
        """Images by shard: ``index`` (n,), ``x`` and ``x_adv`` (n, C, H, W) in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image beaten by one attack. clean, adversarial, difference: PNG files as data URIs.

    size: of the change, in the threat model's norm. magnified: how many times the difference is magnified, around grey.
    """

    defense: str
    attack: str
    index: int
    label: int
    answer: int
    size: float
    clean: str
    adversarial: str
    difference: str
    magnified: float


def pick(table: Leaderboard, cells: Mapping[str, Illustrated]) -> list[Example]:
    """A few images of a table: of each defense, best first, those that its strongest attacks beat. cells: by key."""
    found: list[Example] = []
    spent = 0
    for row in table.rows:
        of_row = 0
        done = [(e.value.value, a.label, e.key) for a, e in zip(table.attacks, row.entries, strict=True) if e.value is not None]
        for _, attack, key in sorted(done):
            example = _first(cells[key], row.defense, attack, table.threat.limit, skip=of_row) if key in cells else None
            if example is None:
                continue
            spent += len(example.clean) + len(example.adversarial) + len(example.difference)
            if spent > MOST_BYTES:
                return found
            found.append(example)
            of_row += 1
            if len(found) == PER_TABLE:
                return found
            if of_row == PER_DEFENSE:
                break
    return found


def _first(cell: Illustrated, defense: str, attack: str, limit: float, skip: int) -> Example | None:
    """The first kept image that was beaten inside the threat model, after ``skip`` others; the last where there are fewer."""
    chosen: tuple[int, np.ndarray, np.ndarray] | None = None
    result: CellResult | None = None
    for kept in cell.examples():
        if not {"index", "x", "x_adv"} <= set(kept) or kept["x"].ndim != 4 or kept["x"].shape[1] not in (1, 3):
            return None
        result = result or cell.load_for_tables()
        for index, clean, adversarial in zip(kept["index"].tolist(), kept["x"], kept["x_adv"], strict=True):
            row = _row(result, index, limit)
            if row is not None:
                chosen = row, clean, adversarial
                if skip == 0:
                    return _example(result, *chosen, defense, attack)
                skip -= 1
    return _example(result, *chosen, defense, attack) if chosen and result else None


def _row(result: CellResult, index: int, limit: float) -> int | None:
    """The row of an example that was beaten inside the limit."""
    rows = np.flatnonzero(result.arrays["index"] == index)
    if len(rows) != 1 or not result.arrays["success"][rows[0]] or result.arrays["size"][rows[0]] > limit:
        return None
    return int(rows[0])


def _example(
    result: CellResult,
    row: int,
    clean: npt.NDArray[np.float32],
    adversarial: npt.NDArray[np.float32],
    defense: str,
    attack: str,
) -> Example:
    change = adversarial.astype(np.float64) - clean
    magnified = 0.5 / max(float(np.abs(change).max()), 1e-9)
    return Example(
        defense=defense,
        attack=attack,
        index=int(result.arrays["index"][row]),
        label=int(result.arrays["y"][row]),
        answer=int(result.arrays["adv_pred"][row]),
        size=float(result.arrays["size"][row]),
        clean=_png(clean),
        adversarial=_png(adversarial),
        difference=_png(0.5 + magnified * change),
        magnified=magnified,
    )


def _png(image: npt.ArrayLike) -> str:
    """A (C, H, W) image in [0, 1], grey or RGB, as a data URI."""
    values = np.round(np.clip(np.asarray(image), 0, 1) * 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0)).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()

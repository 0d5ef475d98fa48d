"""Writes leaderboards to a folder: ``digits-linf.md``, ``.json`` and ``.csv``, each whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from robustbench_lite.errors import StoreError
from robustbench_lite.leaderboard import csv_table, json_table, markdown
from robustbench_lite.leaderboard.model import Leaderboard
from robustbench_lite.lease import write_file

# What a file's name may also need to say, in this order; only what differs between the tables that would share the name.
_TELLING: tuple[Callable[[Leaderboard], str], ...] = (
    lambda t: t.dataset,
    lambda t: t.threat.norm,
    lambda t: t.threat.spelling,
    lambda t: f"{t.protocol['name']}-{t.protocol['version']}",
    lambda t: f"n{t.n}",
    lambda t: f"seed{t.seed}",
)


def write_all(
    tables: Sequence[Leaderboard], folder: Path, stem: str | None = None, *, command: str = "rbl report"
) -> list[Path]:
    """Write each table as Markdown, JSON and CSV; returns the paths.

    stem: the files' name without ending, where ``<data set>-<norm>`` is not wanted. Tables that would share a name get what
    tells them apart added: radius, protocol, n, seed. command: what makes the tables again, shown in the Markdown.

    Raises StoreError where the folder cannot be written. Other files in it are left alone.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}", hint="name another folder") from error
    written: list[Path] = []
    for table, name in zip(tables, stems(tables, stem), strict=True):
        texts = {
            "md": markdown.render(table, command=command),
            "json": json_table.render(table),
            "csv": csv_table.render(table),
        }
        for ending, text in texts.items():
            path = folder / f"{name}.{ending}"
            write_file(path, text.encode("utf-8"))
            written.append(path)
    return written


def stems(tables: Sequence[Leaderboard], stem: str | None = None) -> list[str]:
    """A file name without ending for each table, unique among them."""
    wanted = [_slug(stem or f"{t.dataset}-{t.threat.norm}") for t in tables]
    named = []
    for table, name in zip(tables, wanted, strict=True):
        rivals = [t for t, other in zip(tables, wanted, strict=True) if other == name]
        telling = [tell(table) for tell in _TELLING if len({tell(t) for t in rivals}) > 1]
        named.append("-".join([name, *(_slug(said) for said in telling)]))
    times = Counter(named)
    return [name if times[name] == 1 else f"{name}-{_checksum(t)}" for name, t in zip(named, tables, strict=True)]


def _slug(text: str) -> str:
    """Lower-case letters, digits, dots and hyphens, at most 80: a name on every file system, and never a path."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())[:80].strip("-.") or "table"


def _checksum(table: Leaderboard) -> str:
    asked = {"dataset": table.dataset_spec, "protocol": table.protocol, "seed": table.seed, "threat": str(table.threat)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:8]

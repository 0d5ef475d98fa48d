"""Writes leaderboards to a folder: ``digits-linf.md``, ``.json`` and ``.csv``, each whole or not at all.

The plain name ``<data set>-<norm>`` is that of the default run: the radius that the protocol sets, the default protocol in its
newest version, the most examples, seed 0, the data as they are now. Other tables have what differs added to their names; any
radius, where the protocol sets none, so that a table at one radius is never overwritten by one at another.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from robustbench_lite.errors import StoreError
from robustbench_lite.leaderboard import csv_table, json_table, markdown
from robustbench_lite.leaderboard.model import Leaderboard
from robustbench_lite.lease import remove_file, write_file
from robustbench_lite.protocol import DEFAULT, builtin_protocols
from robustbench_lite.specs import UNRESTRICTED
from robustbench_lite.threat import Threat

ENDINGS = ("md", "json", "csv")

# The threat models that a protocol sets for a data set, by the protocol's and the data set's name.
Radii = Callable[[str, str], Sequence[str]]


def builtin_radii(protocol: str, dataset: str) -> Sequence[str]:
    """The threat models that a protocol of the core sets for a data set; none for other protocols."""
    known = builtin_protocols()
    return known[protocol].rules(dataset).threats if protocol in known else ()


def write_all(
    tables: Sequence[Leaderboard], folder: Path, *, command: str = "rbl report", radii: Radii = builtin_radii
) -> list[Path]:
    """Write each table as Markdown, JSON and CSV; returns the paths.

    command: what makes the tables again, shown in the Markdown. radii: see ``stems``. A table over more examples is not
    overwritten by one over fewer, which gets ``-n64`` added to its name. Where the folder holds one of the tables
    under another name, from an earlier call, that goes; all other files are left alone.

    Raises StoreError where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}", hint="name another folder") from error
    written: list[Path] = []
    for table, stem in zip(tables, stems(tables, radii=radii), strict=True):
        name = f"{stem}-n{table.n}" if _larger(folder / f"{stem}.json", table) else stem
        texts = {
            "md": markdown.render(table, command=command),
            "json": json_table.render(table),
            "csv": csv_table.render(table),
        }
        for ending in ENDINGS:
            path = folder / f"{name}.{ending}"
            write_file(path, texts[ending].encode("utf-8"))
            written.append(path)
    current = [_identity(json_table.to_json(table)) for table in tables]
    for path in sorted(folder.glob("*.json")):
        if path not in written and _identity(_read(path)) in current:
            for ending in ENDINGS:
                remove_file(path.with_suffix(f".{ending}"))
    return written


def stems(tables: Sequence[Leaderboard], *, radii: Radii = builtin_radii) -> list[str]:
    """A file name without ending for each table, unique among them.

    radii: the threat models that a protocol sets for a data set; the first of a norm has no radius in its name.
    """
    named = ["-".join([_slug(f"{t.dataset}-{t.threat.norm}"), *map(_slug, _telling(t, tables, radii))]) for t in tables]
    times = Counter(named)
    return [name if times[name] == 1 else f"{name}-{_checksum(t)}" for name, t in zip(named, tables, strict=True)]


def _telling(table: Leaderboard, tables: Sequence[Leaderboard], radii: Radii) -> Iterator[str]:
    """What a table's name must say beyond data set and norm."""
    threat, name, version = table.threat, table.protocol["name"], table.protocol["version"]
    usual = [t for t in map(Threat.parse, radii(name, table.dataset)) if t.norm == threat.norm][:1]
    if usual != [threat] and threat.norm != UNRESTRICTED:
        yield threat.spelling
    rivals = [t for t in tables if (t.dataset, t.threat, t.protocol["name"]) == (table.dataset, threat, name)]
    newest = max(t.protocol["version"] for t in rivals)
    if name != DEFAULT or version != newest:
        yield name if version == newest else f"{name}-{version}"
    rivals = [t for t in rivals if t.protocol["version"] == version]
    if (table.n or 0) < max(t.n or 0 for t in rivals):
        yield f"n{table.n}"
    if table.seed:
        yield f"seed{table.seed}"
    if table.outdated:
        yield "outdated"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _identity(content: Any) -> str | None:
    """What a table is about, from its JSON; None for anything that is no leaderboard."""
    if not isinstance(content, dict) or content.get("format") != json_table.FORMAT or "rows" not in content:
        return None
    about = {key: content.get(key) for key in ("dataset", "protocol", "seed")}
    threat = content.get("threat")
    sizes = {key: threat.get(key) for key in ("norm", "eps")} if isinstance(threat, dict) else threat
    union = sizes == {"norm": "union", "eps": 1.0}
    return json.dumps([about, threat if union else sizes], sort_keys=True, default=str)


def _larger(path: Path, table: Leaderboard) -> bool:
    """Whether a file holds the same table over more examples: a quick look must not overwrite it."""
    content = _read(path)
    if not isinstance(content, dict) or _identity(content) is None or not isinstance(content.get("n"), int):
        return False
    new = json_table.to_json(table)
    same = all(_without_n(content.get(key)) == _without_n(new.get(key)) for key in ("protocol", "dataset", "seed"))
    return same and content["n"] > (table.n or 0)


def _without_n(value: Any) -> Any:
    """A part of a table's JSON without what depends on how many examples were asked for."""
    return {k: v for k, v in value.items() if k not in ("n", "subset")} if isinstance(value, dict) else value


def _slug(text: str) -> str:
    """Lower-case letters, digits, dots and hyphens, at most 80: a name on every file system, and never a path."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())[:80].strip("-.") or "table"


def _checksum(table: Leaderboard) -> str:
    asked = {"dataset": table.dataset_spec, "protocol": table.protocol, "seed": table.seed, "threat": str(table.threat)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:8]

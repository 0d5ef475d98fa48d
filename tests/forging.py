"""What it takes to forge a bundle so well that its checksums hold."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_lite.bundle.archive import is_member, member_of
from robustbench_lite.cell import Cell
from robustbench_lite.store import Store

Arrays = dict[str, np.ndarray]


def named(store: Path, defense: str = "mean", attack: str = "shift") -> Cell:
    """The cell of a defense and an attack."""
    found = [
        cell
        for cell in Store.open(store).cells()
        if (cell.spec["defense"]["label"], cell.spec["attack"]["label"]) == (defense, attack)
    ]
    (cell,) = found
    return cell


def sealed(folder: Path, manifest: dict[str, Any], path: Path) -> Path:
    """A bundle of a folder laid out as a store, with the right checksum for everything."""
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and p.name != "manifest.json" and is_member(p.relative_to(folder).as_posix())
    )
    manifest["members"] = {p.relative_to(folder).as_posix(): member_of(p).model_dump() for p in files}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        for file in files:
            archive.write(file, file.relative_to(folder).as_posix())
    return path


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A spec with some things changed, deep inside too."""
    return dict(old) | {k: merged(old[k], v) if isinstance(v, Mapping) else v for k, v in new.items()}

"""Checkpoints: what a training run needs to go on after an interruption as if there had been none."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustbench_lite.errors import UsageError
from robustbench_lite.lease import make_folder, remove_file, remove_leftovers, write_file

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A file that is replaced, wholly or not at all, after each epoch. identity: what the run is (see ``card.identity``)."""

    path: Path
    identity: Mapping[str, Any]

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep a state: tensors, numbers and text in dicts and lists. Raises StoreError where that fails."""
        buffer = io.BytesIO()
        torch.save(
            {"format": FORMAT, "identity": json.dumps(dict(self.identity), sort_keys=True), "state": dict(state)}, buffer
        )
        make_folder(self.path.parent)
        write_file(self.path, buffer.getvalue())

    def read(self) -> dict[str, Any] | None:
        """The state that was kept; None where there is no file.

        Raises UsageError for a file that cannot be read, or that another run left: other parameters, data, seed, versions.
        """
        if not self.path.is_file():
            return None
        remove = f"remove {self.path} to start over"
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            kept, state = json.loads(found["identity"]), found["state"]
            known = found["format"] == FORMAT
        except Exception as error:  # torch raises several kinds for a file that is none of its own
            raise UsageError(f"{self.path} is no readable checkpoint: {error}", hint=remove) from None
        if not known:
            raise UsageError(f"{self.path} was written by another version of robustbench-lite", hint=remove)
        asked = json.loads(json.dumps(dict(self.identity)))
        differing = [key for key in sorted({*asked, *kept}) if asked.get(key) != kept.get(key)]
        if differing:
            said = "; ".join(f"{key}: {_difference(kept.get(key), asked.get(key))}" for key in differing)
            raise UsageError(
                f"{self.path} is of another training run than this one ({said})", hint=f"ask for the same, or {remove}"
            )
        return dict(state)

    def remove(self) -> None:
        """Remove the file, and what killed writers left beside it."""
        remove_file(self.path)
        remove_leftovers(self.path.parent)


def _difference(kept: Any, asked: Any) -> str:
    if isinstance(kept, dict) and isinstance(asked, dict):
        names = [name for name in sorted({*kept, *asked}) if kept.get(name) != asked.get(name)]
        return ", ".join(f"{name} {_difference(kept.get(name), asked.get(name))}" for name in names)
    return f"{kept} there, {asked} here"

"""What the commands share: the plugins in use, the folders, and how things are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tabulate import tabulate

from robustbench_lite.errors import UsageError

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry
    from robustbench_lite.store import Store


@dataclass
class App:
    """The object that click hands to every command. command_line: as it was typed."""

    plugin_files: list[Path] = field(default_factory=list)
    command_line: str = "rbl"
    _registry: Registry | None = None

    def registry(self) -> Registry:
        """The registry with all installed plugins and those of ``--plugin``; loaded once. Problems go to standard error."""
        if self._registry is None:
            from robustbench_lite.registry import load

            self._registry = load(self.plugin_files)
            broken = sum(problem.severity == "error" for problem in self._registry.problems)
            if broken:
                warn(f"{counted(broken, 'plugin problem')}: `rbl plugins` says what and how to mend it")
        return self._registry

    @property
    def data(self) -> Path:
        """$RBL_DATA, or ``data``."""
        from robustbench_lite.request import default_data

        return default_data()


def open_store(path: Path | None) -> Store:
    """A store for reading. Raises UsageError where there is none."""
    from robustbench_lite.request import default_store
    from robustbench_lite.store import Store

    folder = path or default_store()
    if not (folder / "FORMAT").exists():
        raise UsageError(f"no results in {folder}", hint="rbl run fills a store; --store or RBL_STORE says which one to read")
    return Store.open(folder, create=False, read_only=True)


def warn(message: str) -> None:
    """A line on standard error."""
    click.echo(f"rbl: {message}", err=True)


def counted(number: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def print_json(value: Any) -> None:
    """A value as JSON on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(rows: Sequence[Sequence[object]], headers: Sequence[str], empty: str) -> None:
    """An aligned table, or a line that says that there is nothing. Cells are text: numbers keep their spelling."""
    if rows:
        click.echo(tabulate([[_line(c) for c in row] for row in rows], headers=headers, disable_numparse=True))
    else:
        click.echo(empty)


def _line(cell: object) -> str:
    """One line without control characters: plugins choose names and summaries."""
    return "".join(c if c.isprintable() else " " for c in str(cell))


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
store_option = click.option(
    "--store", type=click.Path(path_type=Path, file_okay=False), help="Folder with results [RBL_STORE, or ./rbl-results]."
)

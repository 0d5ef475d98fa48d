"""How tests run ``rbl``: in this process where that shows the same, in a process of its own where it does not."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from robustbench_lite.testing import Outcome

TOY = Path(__file__).parent / "plugins" / "toy.py"
BROKEN_PLUGINS = Path(__file__).parent / "testing" / "plugins"  # plugins that conformance suites find something wrong with


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed as JSON."""
        return json.loads(self.out)


def command(*arguments: object, plugin: Path | None = TOY) -> list[str]:
    """The command line of ``rbl`` with a one-file plugin."""
    plugins = ["--plugin", str(plugin)] if plugin else []
    return [sys.executable, "-m", "robustbench_lite", *plugins, *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, with one thread per process."""
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | extra


def rbl(*arguments: object, plugin: Path | None = TOY, code: int = 0, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run ``rbl`` to its end in a process of its own, and check its exit code."""
    done = subprocess.run(
        command(*arguments, plugin=plugin), capture_output=True, text=True, env=environment(**extra), timeout=240, check=False
    )
    if done.returncode != code:
        raise AssertionError(f"exit code {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}")
    return done


def rbl_json(*arguments: object, plugin: Path | None = TOY, code: int = 0, **extra: str) -> Any:
    """Run ``rbl ... --json`` and read what it printed."""
    return json.loads(rbl(*arguments, "--json", plugin=plugin, code=code, **extra).stdout)


def invoke(*arguments: object, plugin: Path | None = TOY, code: int = 0) -> Said:
    """Run ``rbl`` in this process, from the command line to the exit code, and check that and that there is no traceback.

    Anything else than an exit is raised. Workers, where there are any, are processes of their own all the same.
    """
    from robustbench_lite.cli import main

    out, err, given = io.StringIO(), io.StringIO(), command(*arguments, plugin=plugin)[3:]
    ended: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(given)
        except SystemExit as exit_:
            ended = exit_.code
    said = Said(int(str(ended or 0)), out.getvalue(), err.getvalue())
    if said.code != code or "Traceback" in said.err:
        raise AssertionError(f"exit code {said.code}, not {code}: rbl {' '.join(given)}\n{said.out}\n{said.err}")
    return said


def written(folder: Path, name: str, text: str) -> Path:
    """A plugin of one file, ``name``.py in that folder; it will be imported anew where one of that name was before."""
    sys.modules.pop(name, None)
    file = folder / f"{name}.py"
    file.write_text(text)
    return file


def failures(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """The reasons of the conformance checks that failed, by their names."""
    return {outcome.check: outcome.reason for outcome in outcomes if outcome.status == "failed"}

"""How tests run ``rbl`` as a user would: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TOY = Path(__file__).parent / "plugins" / "toy.py"


def command(*arguments: object, plugin: Path | None = TOY) -> list[str]:
    """The command line of ``rbl`` with a one-file plugin."""
    plugins = ["--plugin", str(plugin)] if plugin else []
    return [sys.executable, "-m", "robustbench_lite", *plugins, *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, with one thread per process."""
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | extra


def rbl(*arguments: object, plugin: Path | None = TOY, code: int = 0, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run ``rbl`` to its end and check its exit code."""
    done = subprocess.run(
        command(*arguments, plugin=plugin), capture_output=True, text=True, env=environment(**extra), timeout=240, check=False
    )
    if done.returncode != code:
        raise AssertionError(f"exit code {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}")
    return done


def rbl_json(*arguments: object, plugin: Path | None = TOY, code: int = 0, **extra: str) -> Any:
    """Run ``rbl ... --json`` and read what it printed."""
    return json.loads(rbl(*arguments, "--json", plugin=plugin, code=code, **extra).stdout)

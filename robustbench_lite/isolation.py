"""Run a plugin's code so that nothing it raises or prints reaches the user but as a problem of that plugin.

What it prints to ``sys.stdout`` goes to stderr, so that ``--json`` output stays whole. Output that bypasses ``sys.stdout`` (C
code, child processes), ``os._exit``, a segmentation fault and an endless loop cannot be caught from inside a process.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from robustbench_lite.errors import RblError
from robustbench_lite.records import Plugin

# Their frames say where a plugin was loaded, not where it went wrong.
_LOADERS = tuple(str(Path(__file__).with_name(name)) for name in ("isolation.py", "plugin_file.py", "registry.py"))


class _ToStderr:
    """Stands in for ``sys.stdout`` while plugin code runs, and remembers whether it was written to.

    Text is passed on at once, so a logging handler that keeps this object still works afterwards.
    """

    def __init__(self) -> None:
        self.used = False

    def write(self, text: str) -> int:
        self.used = self.used or bool(text.strip())
        return sys.stderr.write(text)

    def close(self) -> None:
        """Leave stderr open."""

    def __getattr__(self, name: str) -> Any:
        self.used = self.used or name in ("buffer", "writelines", "fileno")  # the ways around write()
        return getattr(sys.stderr, name)


@dataclass
class Outcome:
    """What became of a plugin's code."""

    error: BaseException | None = None
    printed: bool = False


@contextmanager
def isolated() -> Iterator[Outcome]:
    """Run plugin code: keeps whatever it raises, and its printing away from stdout."""
    outcome = Outcome()
    stream = _ToStderr()
    with redirect_stdout(cast(IO[str], stream)):
        try:
            yield outcome
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            outcome.error = error
    outcome.printed = stream.used


def cause_of(error: BaseException) -> str:
    """The exception in one line, with the place in the plugin where it arose."""
    if isinstance(error, SystemExit):
        text = f"it called sys.exit({'' if error.code is None else repr(error.code)})"
    else:
        try:
            text = error.message if isinstance(error, RblError) else f"{type(error).__name__}: {error}".removesuffix(": ")
        except Exception:  # an exception of the plugin's own, with a broken __str__
            text = type(error).__name__
    text = " ".join(text.split())[:400]
    if isinstance(error, (SyntaxError, RblError)):
        return text  # names its file and line, or whatever else there is to say
    own = (*_LOADERS, importlib.__file__, contextmanager.__code__.co_filename)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in own and "<frozen" not in f.filename]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def fix_for(error: BaseException, plugin: Plugin, module: str) -> str:
    """What to do about an exception of plugin code; module: the one that was being imported."""
    if isinstance(error, RblError) and error.hint:
        return error.hint
    without = f"uninstall {plugin.distribution}" if plugin.version else f"run without {plugin.distribution}"
    if isinstance(error, SystemExit):
        return f"remove the exit from {module}, or {without}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        if f"{module}.".startswith(f"{error.name}."):
            return f"correct {plugin.origin!r} (there is no module {error.name!r}), or reinstall {plugin.distribution}"
        return f"install {error.name!r}, which {plugin.distribution} needs, or {without}"
    if isinstance(error, ImportError):
        return f"install versions of {plugin.distribution} and of what it imports that go together, or {without}"
    return f"correct {module}, or {without} and tell its authors"

"""The checks that every kind of plugin object shares: its plugin, its spec, its parameters, and how light it is to import."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

from robustbench_lite import parameters
from robustbench_lite.errors import InvalidParameter, RblError
from robustbench_lite.resolve import resolve
from robustbench_lite.testing.checks import Failed, Skipped, Subject

# Imports a module in a fresh process and says how long that took and whether it brought torch.
_IMPORT = """
import importlib, json, sys, time
sys.path.append(sys.argv[2])
started = time.perf_counter()
importlib.import_module(sys.argv[1])
print("\\n" + json.dumps({"seconds": time.perf_counter() - started, "torch": "torch" in sys.modules}))
"""


def plugin_problems(subject: Subject) -> None:
    """The plugin that brings it loads without errors."""
    entry = subject.entry
    hook = f"rbl_{entry.kind}s"
    wrong = [
        problem
        for problem in subject.registry.problems
        if problem.severity == "error"
        and (problem.distribution, problem.plugin) == (entry.distribution, entry.namespace)
        and problem.object in ("", hook, entry.id)
    ]
    if wrong:
        raise Failed("; ".join(problem.cause for problem in wrong), fix=wrong[0].fix)


def spec_is_complete(subject: Subject) -> None:
    """Its spec is sound, and has a summary of one line for the tables."""
    spec = subject.entry.spec
    if problems := spec.problems():
        raise Failed("; ".join(problems), fix=f"correct the spec in {subject.entry.module}")
    if not spec.summary.strip():
        raise Failed("the spec has no summary", fix=f"give it summary=... in {subject.entry.module}: one line for tables")
    if "\n" in spec.summary:
        raise Failed("the summary has several lines", fix="keep it to one; details belong into the docstring of the factory")


def light_import(subject: Subject) -> None:
    """Importing the module of the entry point imports no torch, so that `rbl list` stays quick."""
    module = subject.entry.module
    seconds, torch = import_cost(module)
    if torch:
        raise Failed(
            f"slow: importing {module} imports torch ({seconds:.1f} s)",
            fix=f"import torch in the module of the factory, not in {module}",
        )


def parameters_are_valid(subject: Subject) -> None:
    """The factory can be imported, its defaults validate, and its parameters survive the way through JSON.

    Workers build the object again from JSON, and a result's key holds the parameters: both need this.
    """
    factory = subject.registry.factory(subject.entry)
    if missing := subject.required:
        shown = ",".join(f"{name}=..." for name in missing)
        raise Skipped(f"it needs {', '.join(missing)}", fix=f"rbl check '{subject.entry.spec.name}[{shown}]'")
    if dataclasses.is_dataclass(factory) and not getattr(factory, "__dataclass_params__").frozen:  # noqa: B009
        raise Failed("its dataclass is not frozen", fix="write @dataclass(frozen=True, kw_only=True)")
    try:
        found = resolve(subject.registry, subject.kind, subject.selector)
    except InvalidParameter as error:
        raise Failed(error.message, fix="give every parameter a default that its own annotation allows") from error
    values = json.loads(json.dumps(found.parameters))
    try:
        again = parameters.build(factory, values, where=subject.entry.id)
    except RblError as error:
        raise Failed(f"its parameters cannot be read back: {error.message}", fix="use plain types for parameters") from error
    if parameters.resolved(again) != values:
        raise Failed(
            f"parameters change on the way through JSON: {values} became {parameters.resolved(again)}",
            fix="keep __post_init__ from changing fields, and use plain types",
        )


COMMON = (plugin_problems, spec_is_complete, light_import, parameters_are_valid)


@cache
def import_cost(module: str) -> tuple[float, bool]:
    """Seconds to import a module in a fresh process, and whether that imported torch. Raises Skipped where it cannot be."""
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    folder = Path(file).parent.parent if file and Path(file).name == "__init__.py" else Path(file or ".").parent
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, module, str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise Skipped(f"{module} cannot be imported in a fresh process: {lines[-1] if lines else 'it ended at once'}")
    cost = json.loads(done.stdout.strip().splitlines()[-1])
    return float(cost["seconds"]), bool(cost["torch"])

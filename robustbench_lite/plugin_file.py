"""Import a plugin that is a single Python file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from robustbench_lite.errors import PluginError


def import_file(path: Path, name: str) -> ModuleType:
    """The module of a file, under this name; as it is where this process loaded it before.

    Raises PluginError where the name belongs to another module, ImportError, and whatever the file raises.
    """
    loaded = sys.modules.get(name)
    if loaded is not None and _is_file(getattr(loaded, "__file__", None), path):
        return loaded  # load() was called before in this process
    found = importlib.util.find_spec(name) if loaded is None else getattr(loaded, "__spec__", None)
    if loaded is not None or (found is not None and not _is_file(found.origin, path)):
        raise PluginError(
            f"it would hide the module {name!r} ({getattr(found, 'origin', None) or 'loaded before'})",
            hint=f"rename {path.name}",
        )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and factory paths look it up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _is_file(origin: str | None, path: Path) -> bool:
    return origin is not None and Path(origin).resolve() == path

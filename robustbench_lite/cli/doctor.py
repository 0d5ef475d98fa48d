"""``rbl doctor``: what this machine has."""

from __future__ import annotations

import importlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from robustbench_lite import __version__
from robustbench_lite.cli.app import App, json_option, print_json, print_table
from robustbench_lite.errors import RblError

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pluggy", "click", "pydantic", "safetensors", "tabulate", "rich")


@click.command("doctor")
@json_option
@click.pass_obj
def command(app: App, as_json: bool) -> int:
    """Report versions, devices, data sets and weights found. Exits with 1 where something needed is broken."""
    registry = app.registry()
    found: dict[str, Any] = {
        "versions": {"robustbench-lite": __version__, "python": platform.python_version()} | _versions(),
        "devices": _devices(),
        "folders": _folders(),
        "data sets": _datasets(app),
        "weights": _weights(app),
        "plugin problems": [str(problem) for problem in registry.problems],
    }
    if as_json:
        print_json(found)
    else:
        for title, content in found.items():
            click.echo(f"\n{title}")
            if isinstance(content, dict):
                print_table([(k, v) for k, v in content.items()], ("", ""), "none")
            else:
                click.echo("\n".join(content) or "none")
    broken = any(str(v).startswith("broken") for v in found["versions"].values())
    return 1 if broken or any(p.severity == "error" for p in registry.problems) else 0


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
            if name == "torchvision":
                from robustbench_lite.torchvision_compat import import_torchvision

                import_torchvision()
            else:
                importlib.import_module(name)
        except metadata.PackageNotFoundError:
            found[name] = f"broken: not installed; pip install {name}"
        except Exception as error:
            found[name] = f"broken: {type(error).__name__}: {error}"
    return found


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": f"{os.cpu_count()} threads, torch uses {torch.get_num_threads()}"}
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return found


def _folders() -> dict[str, str]:
    from robustbench_lite.request import default_data, default_store
    from robustbench_lite.weights import rbl_home

    places: dict[str, Path] = {
        "data (RBL_DATA)": default_data(),
        "results (RBL_STORE)": default_store(),
        "home (RBL_HOME)": rbl_home(),
    }
    return {name: f"{path}{'' if path.exists() else ' (not there yet)'}" for name, path in places.items()}


def _datasets(app: App) -> dict[str, str]:
    """Each data set with its default parameters: found, or what to do."""
    from robustbench_lite.resolve import resolve_dataset

    found = {}
    for entry in app.registry().entries("dataset"):
        try:
            dataset = resolve_dataset(app.registry(), entry.id, app.data)
            found[entry.id] = f"found: {len(dataset.bundle.evaluation)} images to judge, {dataset.info.num_classes} classes"
        except RblError as error:
            found[entry.id] = f"not found: {error.hint or error.message}"
        except Exception as error:
            found[entry.id] = f"broken: {type(error).__name__}: {error}"
    return found


def _weights(app: App) -> dict[str, str]:
    """Each defense on the embedded digits: where its weights come from."""
    from robustbench_lite.resolve import resolve_dataset, resolve_defense

    registry = app.registry()
    try:
        info = resolve_dataset(registry, "digits", app.data).info
    except RblError as error:
        return {"digits": error.message}
    found = {}
    for entry in registry.entries("defense"):
        try:
            defense = resolve_defense(registry, entry.id, info)
            weights = [f"{file.origin}: {file.path}" for file in defense.all_weights()]
            found[f"{entry.id} on digits"] = "; ".join(weights) or "brings its own"
        except RblError as error:
            found[f"{entry.id} on digits"] = f"none: {error.hint or error.message}"
        except Exception as error:
            found[f"{entry.id} on digits"] = f"broken: {type(error).__name__}: {error}"
    return found

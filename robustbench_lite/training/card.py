"""The model card: what is written with the weights."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any

import torch

from robustbench_lite.data import DatasetBundle
from robustbench_lite.training.recipe import Recipe
from robustbench_lite.training.result import TrainingResult


def identity(
    defense_id: str,
    version: int,
    parameters: Mapping[str, Any],
    bundle: DatasetBundle,
    seed: int,
    *,
    recipe: Recipe | None = None,
    parts: Mapping[str, Any] | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, Any]:
    """All that decides the weights, as JSON. parts: what else had a hand in them: the method inside this one, a teacher, a
    base, with their weights.
    """
    found = dict(parts or {}) | {
        "format": 1,
        "defense": defense_id,
        "version": version,
        "parameters": dict(parameters),
        "recipe": None if recipe is None else asdict(recipe),
        "dataset": {"name": bundle.info.name, "fingerprint": bundle.fingerprint},
        "seed": seed,
        "device": torch.device(device).type,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "packages": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("robustbench-lite", "torch", "numpy")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def model_card(identity: Mapping[str, Any], result: TrainingResult) -> dict[str, Any]:
    """What is written with the weights: what made them, and how they did on the held-out examples, epoch by epoch."""
    return dict(identity) | {
        "held_out": {"n": result.held_out, **result.metrics},
        "epochs": {"kept": result.kept, "last": _measured(result.history[-1]), "best": _measured(result.best)},
        "overfit": any(bool(epoch.get("overfit")) for epoch in result.history),
        "history": [{k: v if isinstance(v, bool) else round(v, 4) for k, v in epoch.items()} for epoch in result.history],
    }


def _measured(epoch: Mapping[str, float]) -> dict[str, float]:
    return {name: epoch[name] for name in ("epoch", "clean", "robust") if name in epoch}

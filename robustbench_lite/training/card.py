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
from robustbench_lite.training.loop import TrainingResult


def model_card(
    defense_id: str,
    version: int,
    parameters: Mapping[str, Any],
    bundle: DatasetBundle,
    seed: int,
    result: TrainingResult,
    parts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is written with the weights: everything that made them, and how they did on the held-out examples.

    parts: what else had a hand in them: the identity of the method inside this one, the teacher with its weights.
    """
    return dict(parts or {}) | {
        "format": 1,
        "defense": defense_id,
        "version": version,
        "parameters": dict(parameters),
        "recipe": json.loads(json.dumps(asdict(result.recipe))),
        "dataset": {"name": bundle.info.name, "fingerprint": bundle.fingerprint},
        "seed": seed,
        "held_out": {"n": result.held_out, **result.metrics},
        "epochs": {"kept": result.kept, "last": _measured(result.history[-1]), "best": _measured(result.best)},
        "history": [{k: v if isinstance(v, bool) else round(v, 4) for k, v in epoch.items()} for epoch in result.history],
        "overfit": any(bool(epoch.get("overfit")) for epoch in result.history),
        "device": result.device,
        "precision": result.precision,
        "threads": torch.get_num_threads(),
        "packages": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("robustbench-lite", "torch", "numpy")},
    }


def _measured(epoch: Mapping[str, float]) -> dict[str, float]:
    return {name: epoch[name] for name in ("epoch", "clean", "robust") if name in epoch}

"""Measurements: metrics of scope ``model`` on one defense, planned, run and stored like cells.

A measurement is (protocol, data set, defense, metric, threat where it depends on one, seed). What is stored are the arrays that
the metric measured, in shards of its examples where its rows are examples, else in one; its value is computed from them anew
for every table, without the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustbench_lite.errors import PluginError, RblError, UsageError
from robustbench_lite.resolve import ResolvedDataset, ResolvedDefense, ResolvedMetric, resolve_dataset
from robustbench_lite.threat import Threat
from robustbench_lite.weights import read_card

if TYPE_CHECKING:
    from torch import Tensor

    from robustbench_lite.data import DatasetBundle
    from robustbench_lite.deployed import Deployed
    from robustbench_lite.protocol import Protocol
    from robustbench_lite.registry import Registry


def examples_of(metric: ResolvedMetric, n: int) -> int:
    """On how many of n examples the metric is measured."""
    wanted = getattr(metric.instance, "examples", None)
    return n if not isinstance(wanted, int) else min(n, wanted)


def other_datasets(registry: Registry, metric: ResolvedMetric, root: Path) -> tuple[ResolvedDataset, ...]:
    """The data sets that the metric's field ``datasets`` names. Raises as ``resolve_dataset``."""
    return tuple(resolve_dataset(registry, text, root) for text in getattr(metric.instance, "datasets", ()))


def unmeasurable(
    metric: ResolvedMetric,
    defense: ResolvedDefense,
    dataset: ResolvedDataset,
    threat: Threat | None,
    others: Sequence[ResolvedDataset] = (),
) -> str:
    """Why a metric cannot be measured on a defense; empty where it can."""
    declared, needs = metric.declared, metric.declared.needs
    for other in others:
        if other.info.shape != dataset.info.shape:
            return f"images of {other.label} have shape {other.info.shape}, those of {dataset.label} {dataset.info.shape}"
    if threat is not None and threat.norm not in declared.norms:
        return f"norm {threat.norm} not supported by {metric.label} (it has {', '.join(declared.norms)})"
    if "gradient" in needs and not defense.differentiable:
        return f"{metric.label} needs gradients, and the defense is not differentiable"
    if "deterministic" in needs and defense.stochastic:
        return f"{metric.label} needs a deterministic defense"
    if "certify" in needs and not defense.declared.certifies:
        return f"{metric.label} needs a defense that certifies its answers"
    if "training-data" in needs and dataset.bundle.train is None:
        return f"{metric.label} needs training examples, and the data set has none"
    if "history" in needs and not card_of(defense.spec(), defense.weights_files()).get("history"):
        return f"{metric.label} needs the course of training, and the weights have no model card with one"
    return ""


def measurement_spec(
    protocol: Protocol,
    dataset: ResolvedDataset,
    subset: tuple[int, ...],
    defense: ResolvedDefense,
    metric: ResolvedMetric,
    threat: Threat | None,
    seed: int,
    others: Sequence[ResolvedDataset] = (),
) -> dict[str, Any]:
    """What was asked, with everything resolved that can change a number. Its checksum is the key."""
    further = {"datasets": [other.spec(other.subset(len(subset))) for other in others]} if others else {}
    return {
        "format": 1,
        "protocol": protocol.settings() | {"n": len(subset)},
        "dataset": dataset.spec(subset),
        "defense": defense.spec(),
        "metric": metric.spec() | further,
        "threat": None if threat is None else str(threat),
        "seed": seed,
    }


def is_measurement(spec: Mapping[str, Any]) -> bool:
    """Whether a stored spec is that of a measurement, not of a cell."""
    return "metric" in spec


def card_of(defense: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """The model card of a defense's weights, or of what it wraps; empty where there is none.

    defense: as in a spec. files: path by checksum of the weights.
    """
    if defense["weights"] in files:
        return read_card(Path(files[defense["weights"]]))
    return card_of(defense["base"], files) if defense.get("base") else {}


def measure(
    spec: Mapping[str, Any],
    deployed: Deployed,
    metric: ResolvedMetric,
    bundle: DatasetBundle,
    x: Tensor,
    y: Tensor,
    ids: tuple[int, ...],
    card: Mapping[str, Any] | None = None,
    others: Mapping[str, DatasetBundle] | None = None,
) -> dict[str, np.ndarray]:
    """Measure one shard: x (n, C, H, W) in [0, 1], y (n,), ids: indices into the test split.

    card: of the weights. others: further data sets that the metric names, by label.

    Random numbers depend on the seed, the metric's id and each example's id; torch's global generator is seeded, too.
    Raises PluginError where the metric returns something else than arrays of numbers of one length.
    """
    import torch

    from robustbench_lite.measured import MeasuredModel
    from robustbench_lite.randomness import seeded_globally

    deployed.fit_memory(x)
    model = MeasuredModel(
        deployed,
        bundle,
        x,
        y,
        torch.tensor(ids, dtype=torch.int64, device=x.device),
        draws=spec["protocol"]["eval_draws"],
        key=f"{spec['seed']}|{spec['metric']['id']}",
        card=card,
        others=others,
    )
    threat = None if spec["threat"] is None else Threat.parse(spec["threat"])
    method = getattr(metric.instance, "measure", None)
    if not callable(method):
        raise PluginError(
            f"metric {metric.entry.id} of {metric.entry.distribution} has no method measure",
            hint="a metric of scope 'model' has measure(model, threat) -> arrays",
        )
    with seeded_globally(True, model.rng.seed_for("global", int(ids[0])), x.device):
        found = method(model, threat)
    arrays = checked_arrays(found, metric.entry.id, len(ids) if metric.declared.per_example else None)
    return {"index": np.asarray(ids, dtype=np.int64), **arrays} if metric.declared.per_example else arrays


def checked_arrays(found: object, name: str, n: int | None) -> dict[str, np.ndarray]:
    """What ``measure`` of a metric returned, if it is arrays of numbers with one row per example (n), or of one length.

    Raises PluginError.
    """
    hint = "return a dict of numpy arrays of numbers, all of one length of at least 1"
    if not isinstance(found, Mapping) or not found:
        raise PluginError(f"measure of metric {name} returned {type(found).__name__}, not arrays", hint=hint)
    for key, values in found.items():
        numbers = isinstance(values, np.ndarray) and values.ndim and values.dtype.kind in "biuf" and values.itemsize <= 8
        if not isinstance(key, str) or not numbers:
            raise PluginError(f"measure of metric {name} returned no array of numbers as {key!r}", hint=hint)
    lengths = {key: len(values) for key, values in found.items()}
    if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        raise PluginError(f"measure of metric {name} returned arrays of lengths {lengths}", hint=hint)
    if n not in (None, next(iter(lengths.values()))):
        raise PluginError(
            f"measure of metric {name} returned {next(iter(lengths.values()))} rows for {n} examples",
            hint="give one row per example of the model's x, or declare per_example=False",
        )
    return dict(found)


def value_of(metric: ResolvedMetric, arrays: Mapping[str, np.ndarray]) -> Any:
    """The metric's value by what was measured. Raises an RblError, whatever the metric raised."""
    try:
        return metric.instance(arrays)
    except RblError:
        raise
    except Exception as error:
        raise PluginError(f"metric {metric.entry.id} failed: {type(error).__name__}: {error}") from error


def require_model_scope(metric: ResolvedMetric) -> ResolvedMetric:
    """Raise UsageError for a metric that is computed from stored results."""
    if metric.declared.scope != "model":
        raise UsageError(
            f"{metric.label} is computed from stored results: it needs no run", hint=f"rbl report --metric {metric.label}"
        )
    return metric

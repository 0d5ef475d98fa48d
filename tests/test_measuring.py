"""Metrics of scope ``model``: planned, run, stored and shown like cells, and what becomes of those that go wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from robustbench_lite.cell import Cell
from robustbench_lite.errors import CorruptResult, InvalidParameter, PluginError, UsageError
from robustbench_lite.leaderboard.json_table import schema
from robustbench_lite.measuring import checked_arrays
from robustbench_lite.planner import make_plan
from robustbench_lite.registry import Registry, load
from robustbench_lite.request import RunRequest
from robustbench_lite.runner import Workbench, WorkItem, run_cell
from robustbench_lite.specs import MetricSpec
from robustbench_lite.store import Store
from tests.support import TOY, invoke

METRICS = """
from dataclasses import dataclass
import numpy as np
import torch
from robustbench_lite import CellResult, MetricSpec, MetricValue, hookimpl, randn_like

@hookimpl
def rbl_metrics():
    common = {"scope": "model", "direction": "higher"}
    yield MetricSpec(name="margins", factory="measuring:Margins", per_example=True, unit="%", **common)
    yield MetricSpec(name="weights", factory="measuring:Weights", **common)
    yield MetricSpec(name="inside", factory="measuring:Inside", norms=("linf",), **common)
    yield MetricSpec(name="breaks", factory="measuring:Breaks", per_example=True, **common)
    yield MetricSpec(name="one-row", factory="measuring:OneRow", per_example=True, **common)
    yield MetricSpec(name="fixed", factory="measuring:Weights", needs=("deterministic",), **common)
    yield MetricSpec(name="certified", factory="measuring:Weights", needs=("certify",), **common)
    yield MetricSpec(name="learnt", factory="measuring:Weights", needs=("training-data",), **common)
    yield MetricSpec(name="course", factory="measuring:Weights", needs=("history",), **common)
    yield MetricSpec(name="beaten", factory="measuring:Beaten", scope="cell", direction="lower", unit="%")
    yield MetricSpec(name="both", factory="measuring:Both", scope="defense", direction="higher", unit="%")

@dataclass(frozen=True, kw_only=True)
class Margins:
    examples: int = 600
    fails_from: int = -1
    def measure(self, model, threat):
        assert threat is None
        if self.fails_from >= 0 and int(model.ids[-1]) >= self.fails_from:
            raise RuntimeError("out of luck")
        z = model.logits(model.x)
        noise = model.rng.normal(torch.arange(len(model.x)), ())
        return {"margin": (z.gather(1, model.y[:, None])[:, 0] - z.amin(1)).numpy(), "noise": noise.numpy(),
                "global": torch.rand(len(z)).numpy(), "right": (z.argmax(1) == model.y).numpy()}
    def __call__(self, arrays):
        return MetricValue(value=float(arrays["right"].mean()), n=len(arrays["right"]))

@dataclass(frozen=True, kw_only=True)
class Weights:
    def measure(self, model, threat):
        return {"count": np.array([p.numel() for p in model.module.parameters()] or [0])}
    def __call__(self, arrays):
        return MetricValue(value=float(arrays["count"].sum()))

@dataclass(frozen=True, kw_only=True)
class Inside:
    def measure(self, model, threat):
        return {"eps": np.array([threat.eps])}
    def __call__(self, arrays):
        return MetricValue(value=float(arrays["eps"][0]))

@dataclass(frozen=True, kw_only=True)
class Breaks:
    def measure(self, model, threat):
        raise ZeroDivisionError("no such luck")
    def __call__(self, arrays):
        return MetricValue(value=0.0)

@dataclass(frozen=True, kw_only=True)
class OneRow(Breaks):
    def measure(self, model, threat):
        return {"x": np.ones(1)}

@dataclass(frozen=True, kw_only=True)
class Beaten:
    def __call__(self, cell, threat):
        return MetricValue(value=float(1 - cell.robust(threat).mean()), n=cell.n)

@dataclass(frozen=True, kw_only=True)
class Both:
    def __call__(self, cells, threat):
        return MetricValue(value=float(np.logical_and.reduce([c.robust(threat) for c in cells]).mean()), n=len(cells))
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugins") / "measuring.py"
    path.write_text(METRICS.replace("import torch\n", "import torch\n", 1))
    return path


@pytest.fixture(scope="module")
def registry(plugin: Path) -> Registry:
    sys.modules.pop("measuring", None)
    return load([TOY, plugin])


@pytest.fixture
def run(registry: Registry, tmp_path: Path) -> Callable[..., tuple[str, Cell, list[dict[str, Any]]]]:
    """Plan one measurement, run it here, and return how it ended, the measurement and the events."""

    def make(metric: str, **fields: Any) -> tuple[str, Cell, list[dict[str, Any]]]:
        request = asked(tmp_path, metric, **fields)
        (planned,) = make_plan(request, registry, None).cells
        assert planned.state == "run", planned.reason
        events: list[dict[str, Any]] = []
        status = run_cell(WorkItem.of(planned, request, "cpu"), Workbench(registry), events.append)
        return status, Store.open(request.store).cell(planned.spec), events

    return make


def asked(folder: Path, metric: str, **fields: Any) -> RunRequest:
    given = {"dataset": "toy/blobs", "threat": "linf:0.08", "defense": "toy/mean", "metric": metric, "n": 600} | fields
    return RunRequest.model_validate({"store": folder / "store", "data": folder} | given)


def test_rows_that_are_examples_are_measured_in_shards(run: Any) -> None:
    status, cell, events = run("margins")
    result = cell.load()
    assert status == result.status == "done"
    assert [e["n"] for e in events if e["event"] == "shard"] == [256, 256, 88]
    assert result.arrays["index"].tolist() == list(range(600))
    assert result.arrays["right"].mean() > 0.9
    assert cell.folder.parent.parent.name == "measures"
    assert result.label == "mean by margins"


def test_a_value_does_not_depend_on_how_it_was_run(run: Any) -> None:
    _, whole, _ = run("margins")
    _, again, _ = run("margins", store=whole.store.path.parent / "other", micro_batch=7)
    first, second = whole.load().arrays, again.load().arrays
    for name in ("noise", "global", "right"):
        assert np.array_equal(first[name], second[name])
    assert np.allclose(first["margin"], second["margin"], atol=1e-4)
    _, fewer, _ = run("margins[examples=40]")
    assert np.array_equal(fewer.load().arrays["noise"], first["noise"][:40])
    _, seeded, _ = run("margins[examples=40]", seed=1)
    assert not np.array_equal(seeded.load().arrays["noise"], first["noise"][:40])


def test_rows_that_are_no_examples_are_one_shard(run: Any) -> None:
    status, cell, events = run("weights")
    assert status == "done"
    assert sum(e["event"] == "shard" for e in events) == 1
    assert cell.state(1).status == "done"


def test_what_was_whole_is_kept_when_a_later_shard_fails(run: Any) -> None:
    status, cell, events = run("margins[fails_from=512]")
    assert status == "error"
    assert events[-1]["reason"] == "RuntimeError: out of luck"
    assert cell.state(3).shards == {0, 1}
    assert cell.load().status == "error"


@pytest.mark.parametrize(
    ("metric", "said"),
    [("breaks", "ZeroDivisionError: no such luck"), ("one-row", "returned 1 rows for 256 examples")],
)
def test_an_error_is_no_value(run: Any, metric: str, said: str) -> None:
    status, cell, events = run(metric)
    assert status == "error"
    assert said in events[-1]["reason"]
    assert cell.load().status == "error"


def test_measurements_are_cached_and_keyed_by_what_can_change_them(run: Any, registry: Registry, tmp_path: Path) -> None:
    _, cell, _ = run("inside")
    store = Store.open(tmp_path / "store")
    keys = {}
    for name, fields in {"same": {}, "threat": {"threat": "linf:0.1"}, "seed": {"seed": 1}, "n": {"n": 64}}.items():
        (planned,) = make_plan(asked(tmp_path, "inside", **fields), registry, store).cells
        keys[name] = planned.key
        assert planned.state == ("cached" if name == "same" else "run")
    assert keys["same"] == cell.key
    assert len(set(keys.values())) == 4
    (free,) = make_plan(asked(tmp_path, "weights"), registry, store).cells
    (other,) = make_plan(asked(tmp_path, "weights", threat="linf:0.3"), registry, store).cells
    assert free.key == other.key
    assert [c.key for c in store.measurements()] == [cell.key]
    assert not list(store.cells())
    assert store.get(cell.key[:10]).key == cell.key
    assert store.check() == []


def test_damage_is_found_and_measured_again(run: Any) -> None:
    _, cell, _ = run("weights")
    path = cell.folder / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    reader = Store.open(cell.store.path, read_only=True)
    with pytest.raises(CorruptResult):
        reader.cell(cell.spec).load()
    assert any("measures/" in message for message in reader.check())
    assert Store.open(cell.store.path).cell(cell.spec).load().status == "partial"  # sets it aside
    status, again, _ = run("weights")
    assert status == "done"
    assert again.load().status == "done"


@pytest.mark.parametrize(
    ("metric", "defense", "reason"),
    [
        ("fixed", "toy/noisy-mean", "needs a deterministic defense"),
        ("certified", "toy/mean", "needs a defense that certifies"),
        ("learnt", "toy/mean", "needs training examples"),
        ("course", "toy/mean", "no model card"),
        ("weights", "toy/needs-training", "no weights: rbl train"),
        ("weights", "toy/not-a-module", "unusable"),
    ],
)
def test_what_cannot_be_measured_is_skipped_with_a_reason(
    registry: Registry, tmp_path: Path, metric: str, defense: str, reason: str
) -> None:
    (planned,) = make_plan(asked(tmp_path, metric, defense=defense), registry, None).cells
    assert planned.state == "skip"
    assert reason in planned.reason
    assert planned.to_json()["metric"] == metric


def test_a_norm_that_it_does_not_measure_in(registry: Registry, tmp_path: Path) -> None:
    (planned,) = make_plan(asked(tmp_path, "inside", threat="l2:1"), registry, None).cells
    assert planned.reason == "norm l2 not supported by inside (it has linf)"


def test_attacks_run_unless_only_metrics_are_named(registry: Registry, tmp_path: Path) -> None:
    both = make_plan(asked(tmp_path, "weights", attack="toy/shift"), registry, None).cells
    assert [(c.attack, c.metric) for c in both] in ([("shift", ""), ("", "weights")], [("", "weights"), ("shift", "")])
    every = make_plan(asked(tmp_path, "all"), registry, None).cells
    assert {"margins", "weights", "inside"} <= {c.metric for c in every}
    assert {c.attack for c in every} == {""}
    with pytest.raises(UsageError, match="computed from stored results"):
        make_plan(asked(tmp_path, "beaten"), registry, None)
    with pytest.raises(InvalidParameter):
        make_plan(asked(tmp_path, "margins[examples=many]"), registry, None)


def test_specs_of_models_are_checked() -> None:
    good = {"name": "m", "factory": "a:B", "direction": "none"}
    assert MetricSpec(scope="model", norms=("linf",), needs=("gradient",), per_example=True, **good).problems() == []
    assert "unknown need 'luck'" in MetricSpec(scope="model", needs=("luck",), **good).problems()[0]
    assert "unknown norm 'l7'" in MetricSpec(scope="model", norms=("l7",), **good).problems()[0]
    assert "needs must be a tuple" in MetricSpec(scope="model", needs="gradient", **good).problems()[0]
    assert "of metrics of scope 'model'" in MetricSpec(scope="cell", per_example=True, **good).problems()[0]


@pytest.mark.parametrize(
    ("found", "n"),
    [
        (None, None),
        ({}, None),
        ({"a": [1.0]}, None),
        ({"a": np.array(1.0)}, None),
        ({"a": np.array(["x"])}, None),
        ({"a": np.ones(2), "b": np.ones(3)}, None),
        ({"a": np.ones(0)}, None),
        ({"a": np.ones(2)}, 3),
        ({"a": torch.ones(2)}, None),
    ],
)
def test_what_is_no_measurement(found: object, n: int | None) -> None:
    with pytest.raises(PluginError, match="measure of metric m returned"):
        checked_arrays(found, "m", n)


def rbl(plugin: Path, *arguments: object, code: int = 0) -> Any:
    return invoke("--plugin", plugin, *arguments, code=code)


def test_from_the_command_line(plugin: Path, tmp_path: Path) -> None:
    """Measured without a table, then beside one; further metrics of stored results when asked for."""
    sys.modules.pop("measuring", None)
    place = ("--store", tmp_path / "store", "--data", tmp_path)
    given = (
        "--dataset",
        "toy/blobs",
        "--defense",
        "toy/mean",
        *place,
        "--n",
        "64",
        "--threat",
        "linf:0.08",
        "--executor",
        "inline",
    )
    said = rbl(plugin, "run", *given, "--metric", "weights,margins,inside")
    assert "blobs, quick@2: metrics of models" in said.out
    assert "margins (%)" in said.out
    (alone,) = rbl(plugin, "report", *place[:2], "--json").json
    jsonschema.validate(alone, schema())
    assert (alone["rows"], alone["threat"], len(alone["measures"])) == ([], None, 3)
    again = rbl(plugin, "run", *given, "--metric", "weights,margins,inside", "--json")
    assert {c["state"] for c in again.json["plan"]} == {"cached"}

    rbl(plugin, "run", *given, "--attack", "toy/shift")
    (table,) = rbl(plugin, "report", *place[:2], "--metric", "beaten,both", "--json").json
    jsonschema.validate(table, schema())
    found = {(m["metric"]["label"], m["attack"]): m["value"] for m in table["measures"]}
    assert set(found) == {("weights", None), ("margins", None), ("inside", None), ("both", None), ("beaten", "shift")}
    assert found["inside", None]["value"] == 0.08
    robust = table["rows"][0]["attacks"]["shift"]["robust_accuracy"]["value"]
    assert found["beaten", "shift"]["value"] == pytest.approx(1 - robust)
    assert found["both", None]["value"] == pytest.approx(robust)
    text = rbl(plugin, "report", *place[:2], "--metric", "beaten", "--format", "markdown").out
    assert "Further metrics, which rank nothing" in text
    assert "| shift" in text
    shown = rbl(plugin, "report", *place[:2], "--format", "terminal").out
    assert "margins (%)" in shown
    assert "beaten" not in shown
    status = json.loads(rbl(plugin, "status", *place[:2], "--json").out)
    assert {c["metric"] for c in status["cells"]} == {"", "weights", "margins", "inside"}
    refused = rbl(plugin, "report", *place[:2], "--metric", "weights", code=2)
    assert "rbl run --metric weights" in refused.err


def test_a_failed_measurement_is_told_and_has_no_value(plugin: Path, tmp_path: Path) -> None:
    sys.modules.pop("measuring", None)
    given = ("--dataset", "toy/blobs", "--defense", "toy/mean", "--store", tmp_path / "store", "--data", tmp_path, "--n", "64")
    said = rbl(plugin, "run", *given, "--executor", "inline", "--metric", "breaks", "--json", code=1)
    assert "no such luck" in said.err
    (table,) = said.json["tables"]
    assert table["measures"][0]["value"] is None
    assert "no such luck" in table["measures"][0]["note"]

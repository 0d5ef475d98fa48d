"""One cell, shard by shard: what is stored, what is refused, and what does not depend on how it is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustbench_lite.cell import Cell
from robustbench_lite.errors import StoreError
from robustbench_lite.planner import make_plan
from robustbench_lite.registry import Registry, load
from robustbench_lite.request import RunRequest
from robustbench_lite.runner import Workbench, WorkItem, environment, run_cell
from robustbench_lite.store import Store
from tests.support import TOY, written

ODD = '''
from dataclasses import dataclass
import torch
from robustbench_lite import AttackSpec, BudgetExceeded, DatasetBundle, DatasetInfo, DatasetSpec, DefenseSpec, hookimpl

@hookimpl
def rbl_attacks():
    common = {"norms": ("linf",), "access": "scores"}
    yield AttackSpec(name="global", factory="odd:Global", global_rng=True, **common)
    yield AttackSpec(name="greedy", factory="odd:Greedy", **common)
    yield AttackSpec(name="draws", factory="odd:Draws", **common)
    yield AttackSpec(name="no-memory", factory="odd:NoMemory", **common)
    yield AttackSpec(name="short", factory="odd:Short", **common)

@hookimpl
def rbl_defenses():
    yield DefenseSpec(name="random-weights", factory="odd:RandomWeights")
    yield DefenseSpec(name="hidden-noise", factory="odd:HiddenNoise")
    yield DefenseSpec(name="no-surrogate", factory="odd:NoSurrogate", differentiable=False, surrogate=True)

@hookimpl
def rbl_datasets():
    yield DatasetSpec(name="odd", factory="odd:Odd")

@dataclass(frozen=True, kw_only=True)
class Global:
    def __call__(self, target, x, y, threat, rng):
        return threat.project(x, x + 0.02 * torch.randn(x.shape))

@dataclass(frozen=True, kw_only=True)
class Draws:
    def __call__(self, target, x, y, threat, rng):
        return threat.project(x, x + rng.uniform(None, x.shape[1:], low=-0.05, high=0.05))

@dataclass(frozen=True, kw_only=True)
class Greedy:
    def __call__(self, target, x, y, threat, rng):
        beyond = threat.project(x, x - threat.eps * (2.0 * y.view(-1, 1, 1, 1) - 1))
        while True:
            target.logits(beyond)

@dataclass(frozen=True, kw_only=True)
class NoMemory:
    def __call__(self, target, x, y, threat, rng):
        raise torch.OutOfMemoryError("CUDA out of memory")

@dataclass(frozen=True, kw_only=True)
class Short:
    def __call__(self, target, x, y, threat, rng):
        return x[:-1]

@dataclass(frozen=True, kw_only=True)
class RandomWeights:
    def __call__(self, info, weights):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))

class Brightness(torch.nn.Module):
    def forward(self, x):
        mean = x.flatten(1).mean(1) + 0.1 * torch.randn(len(x))
        return torch.stack([0.5 - mean, mean - 0.5], 1)

@dataclass(frozen=True, kw_only=True)
class HiddenNoise:
    """Draws from torch's generator and declares nothing."""

    def __call__(self, info, weights):
        return Brightness()

@dataclass(frozen=True, kw_only=True)
class NoSurrogate:
    def __call__(self, info, weights):
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        torch.nn.init.zeros_(module[1].weight)
        torch.nn.init.zeros_(module[1].bias)
        return module

@dataclass(frozen=True, kw_only=True)
class Odd:
    """Images that break the contract of a data set in the way that ``how`` says."""

    how: str = ""

    def __call__(self, root):
        images = {"": torch.rand(8, 1, 4, 4), "dtype": torch.rand(8, 1, 4, 4).double(), "range": torch.rand(8, 1, 4, 4) * 255,
                  "shape": torch.rand(8, 3, 4, 4), "nan": torch.full((8, 1, 4, 4), float("nan"))}[self.how]
        test = [(image, i % 2) for i, image in enumerate(images)]
        info = DatasetInfo(name="odd", classes=("a", "b"), shape=(1, 4, 4))
        return DatasetBundle(info=info, test=test, evaluation=range(8), fingerprint=f"{(root / 'version').exists()}")
'''


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return load([TOY, written(tmp_path_factory.mktemp("plugins"), "odd", ODD)])


@pytest.fixture
def run(registry: Registry, tmp_path: Path) -> Callable[..., tuple[str, Cell, list[dict[str, Any]]]]:
    """Plan one cell, run it here, and return how it ended, the cell and the events."""

    def make(name: str = "store", **fields: Any) -> tuple[str, Cell, list[dict[str, Any]]]:
        asked = {"dataset": "toy/blobs", "threat": "linf:0.08", "defense": "toy/mean", "attack": "toy/shift"} | fields
        request = RunRequest.model_validate({"store": tmp_path / name, "data": tmp_path} | asked)
        (planned,) = make_plan(request, registry, None).cells
        assert planned.state == "run", planned.reason
        events: list[dict[str, Any]] = []
        status = run_cell(WorkItem.of(planned, request, "cpu"), Workbench(registry), events.append)
        return status, Store.open(request.store).cell(planned.spec), events

    return make


def test_a_cell_is_run_shard_by_shard_and_committed(run: Callable[..., Any]) -> None:
    status, cell, events = run(n=600)
    assert status == "done"
    assert [event["event"] for event in events] == ["started", "shard", "shard", "shard", "finished"]
    assert [event["n"] for event in events if event["event"] == "shard"] == [256, 256, 88]
    result = cell.load()
    assert (result.status, result.n, result.attempts) == ("done", 600, 1)
    assert result.environment["packages"]["torch"]
    np.testing.assert_array_equal(result.arrays["index"], np.arange(600))
    assert run(n=600)[0] == "cached"


def test_the_first_shards_of_a_longer_run_are_those_of_a_shorter_one(run: Callable[..., Any]) -> None:
    long, short = (run(n=n, attack="odd/draws", defense="toy/noisy-mean")[1].load().arrays for n in (300, 40))
    for name, values in short.items():
        np.testing.assert_allclose(long[name][:40], values, rtol=0, atol=1e-5, err_msg=name)


def test_a_micro_batch_changes_no_number(run: Callable[..., Any]) -> None:
    found = [
        run(f"store-{size}", n=64, attack="odd/draws", defense="toy/noisy-mean", micro_batch=size)[1].load().arrays
        for size in (None, 1, 7)
    ]
    for other in found[1:]:
        for name, values in found[0].items():
            np.testing.assert_allclose(other[name], values, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("plugins", [{"attack": "odd/global"}, {"defense": "odd/hidden-noise"}], ids=["attack", "defense"])
def test_torchs_generator_is_seeded_for_a_plugin_that_draws_from_it_and_left_as_it_was(
    run: Callable[..., Any], plugins: dict[str, str]
) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = run("a", n=32, **plugins)[1].load().arrays
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = run("b", n=32, **plugins)[1].load().arrays
    np.testing.assert_array_equal(first["margin_adv"], second["margin_adv"])
    third = run("c", n=32, seed=1, **plugins)[1].load().arrays
    assert (first["margin_adv"] != third["margin_adv"]).any()


def test_an_attack_that_uses_up_its_budget_keeps_what_it_found(run: Callable[..., Any], tmp_path: Path) -> None:
    protocol = tmp_path / "tight.yaml"
    protocol.write_text("name: tight\nversion: 1\nbudget: 3\n")
    status, cell, _ = run(n=32, attack="odd/greedy", protocol=str(protocol))
    assert status == "done"
    arrays = cell.load().arrays
    assert (arrays["queries"] <= 3).all()
    assert arrays["success"].any()
    assert (arrays["source"][arrays["success"]] > 0).all()


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"attack": "toy/raises", "n": 32}, "error", "ValueError: half way through"),
        ({"attack": "odd/short", "n": 32}, "error", "it returned torch.float32 ("),
        ({"attack": "odd/no-memory", "n": 32}, "out-of-memory", "memory ran out"),
        ({"defense": "toy/guessing"}, "error", "no better than chance"),
        ({"defense": "odd/random-weights", "n": 32}, "error", "built other weights than when the run was planned"),
        ({"defense": "odd/no-surrogate", "n": 32}, "error", "its module has no method surrogate(x)"),
        ({"dataset": "odd/odd[how=dtype]", "n": 8}, "error", "gave torch.float64 (1, 4, 4) images"),
        ({"dataset": "odd/odd[how=range]", "n": 8}, "error", "give float32 of shape (1, 4, 4) in [0, 1]"),
        ({"dataset": "odd/odd[how=shape]", "n": 8}, "error", "gave torch.float32 (3, 4, 4) images"),
        ({"dataset": "odd/odd[how=nan]", "n": 8}, "error", "images from nan"),
    ],
)
def test_what_goes_wrong_is_recorded_with_a_reason_and_scores_nothing(
    run: Callable[..., Any], fields: dict[str, Any], status: str, reason: str
) -> None:
    ended, cell, events = run(**fields)
    assert ended == status
    assert reason in events[-1]["reason"]
    result = cell.load()
    assert (result.status, result.n) == (status, 0)
    assert reason in result.reason
    assert not (cell.folder / "lease.json").exists()


def test_data_that_change_between_plan_and_run_are_refused(registry: Registry, tmp_path: Path) -> None:
    request = RunRequest.model_validate(
        {"dataset": "odd/odd", "threat": "linf:0.1", "defense": "toy/mean", "attack": "toy/shift", "n": 8, "data": tmp_path}
        | {"store": tmp_path / "store"}
    )
    (planned,) = make_plan(request, registry, None).cells
    (tmp_path / "version").touch()
    events: list[dict[str, Any]] = []
    assert run_cell(WorkItem.of(planned, request, "cpu"), Workbench(registry), events.append) == "error"
    assert "has changed since the run was planned" in events[-1]["reason"]
    assert "run the same command again" in events[-1]["reason"]


def test_a_store_that_fails_is_told_as_the_cells_end(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreError("no room to write", hint="free some space")

    monkeypatch.setattr(Cell, "begin_attempt", full)
    status, _, events = run(n=32)
    assert status == "error"
    assert events[-1]["reason"] == "no room to write\n  fix: free some space"


def test_a_full_disk_does_not_hide_why_an_attack_failed(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreError("no room to write")

    monkeypatch.setattr(Cell, "write_salvage", full)
    monkeypatch.setattr("robustbench_lite.attempt.Attempt.finish", full)
    status, _, events = run(n=32, attack="toy/raises")
    assert status == "error"
    assert events[-1]["reason"] == "ValueError: half way through"


def test_an_attempts_record_says_how_each_shard_went(run: Callable[..., Any]) -> None:
    import json

    cell = run(n=300)[1]
    (path,) = (cell.folder / "attempts").iterdir()
    record = json.loads(path.read_text())
    assert [entry["shard"] for entry in record["progress"]] == [0, 1]
    assert all(entry["peak_memory_bytes"] > 0 and entry["elapsed"] > 0 for entry in record["progress"])
    assert record["seconds"] >= record["progress"][-1]["elapsed"] - 0.01
    assert record["status"] == "done"


def test_a_work_item_survives_json(registry: Registry, tmp_path: Path) -> None:
    import json

    request = RunRequest.model_validate(
        {"dataset": "toy/blobs", "threat": "linf:0.1", "defense": "toy/mean", "attack": "toy/shift", "store": tmp_path}
    )
    item = WorkItem.of(make_plan(request, registry, None).cells[0], request, "cpu")
    assert WorkItem(**json.loads(json.dumps(item.to_json()))) == item
    assert environment("cpu")["packages"]["robustbench-lite"]

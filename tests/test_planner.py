"""From a request to cells: which, in what order, in what state and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_lite import InvalidParameter, PluginError, UnknownName, UsageError
from robustbench_lite.keys import cell_key
from robustbench_lite.outdated import Outdated, difference
from robustbench_lite.plan import Plan, count_shards
from robustbench_lite.planner import make_plan
from robustbench_lite.protocol import builtin_protocols, contributed_protocols, find_protocol, known_protocols
from robustbench_lite.registry import Registry, load
from robustbench_lite.request import RunRequest
from robustbench_lite.resolve import defense_from_spec, resolve_dataset, resolve_defense
from robustbench_lite.store import Store
from tests.support import TOY, written

LAB = """
from dataclasses import dataclass
from pathlib import Path
from robustbench_lite import AttackSpec, DatasetSpec, DefenseSpec, ProtocolSpec, hookimpl

GOOD = "name: good\\nversion: 3\\ndefault: {threats: ['linf:0.08'], n: 16}\\nattacks: {lab/costly: {steps: 7}}\\n"
BAD = "name: bad\\nversions: 3\\n"

@hookimpl
def rbl_attacks():
    common = {"norms": ("linf",), "access": "gradient"}
    yield AttackSpec(name="costly", factory="lab:Costly", **common)
    yield AttackSpec(name="choosy", factory="lab:Choosy", min_classes=3, **common)
    yield AttackSpec(name="nowhere", factory="lab:NotThere", **common)
    yield AttackSpec(name="incomplete", factory="lab:Incomplete", **common)

@hookimpl
def rbl_defenses():
    yield DefenseSpec(name="around", factory="lab:Around", kind="wrapper", differentiable=False, surrogate=False)
    yield DefenseSpec(name="own-tail", factory="lab:OwnTail", kind="wrapper")
    yield DefenseSpec(name="several", factory="lab:Several", kind="wrapper")
    yield DefenseSpec(name="digits-only", factory="lab:Own", datasets=("digits",))
    yield DefenseSpec(name="raises", factory="lab:RaisesAtBuild")

@hookimpl
def rbl_datasets():
    yield DatasetSpec(name="sick", factory="lab:Sick")

@hookimpl
def rbl_protocols():
    yield ProtocolSpec(name="good", factory="lab:GOOD")
    yield ProtocolSpec(name="bad", factory="lab:BAD")
    yield ProtocolSpec(name="gone", factory="lab:GONE")

GONE = Path("no/such/file.yaml")

@dataclass(frozen=True, kw_only=True)
class Costly:
    steps: int = 3
    def passes(self, num_classes):
        return 2 * self.steps
    def __call__(self, target, x, y, threat, rng):
        return x

@dataclass(frozen=True, kw_only=True)
class Choosy(Costly): ...

@dataclass(frozen=True, kw_only=True)
class Incomplete(Costly):
    kind: str

@dataclass(frozen=True, kw_only=True)
class Around:
    base: str = "toy/mean"
    def __call__(self, info, base):
        return base

@dataclass(frozen=True, kw_only=True)
class OwnTail(Around):
    base: str = "own-tail"

@dataclass(frozen=True, kw_only=True)
class Several:
    bases: tuple[str, ...] = ("toy/mean", "toy/mean[scale=2]")
    def __call__(self, info, bases):
        from torch import nn
        return nn.ModuleList(bases)

@dataclass(frozen=True, kw_only=True)
class Own:
    def __call__(self, info, weights):
        raise AssertionError("never built")

@dataclass(frozen=True, kw_only=True)
class RaisesAtBuild:
    def __call__(self, info, weights):
        raise KeyError("layer")

@dataclass(frozen=True, kw_only=True)
class Sick:
    def __call__(self, root):
        raise OSError("the disk is on fire")
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return load([TOY, written(tmp_path_factory.mktemp("plugins"), "lab", LAB)])


@pytest.fixture
def plan(registry: Registry) -> Callable[..., Plan]:
    def make(store: Store | None = None, **fields: Any) -> Plan:
        asked = {"dataset": "toy/blobs", "threat": "linf:0.08", "defense": "toy/mean", "attack": "toy/shift"} | fields
        return make_plan(RunRequest.model_validate(asked), registry, store)

    return make


def reasons(plan: Plan) -> dict[str, str]:
    return {f"{cell.defense} x {cell.attack}": cell.reason for cell in plan.cells}


def test_a_key_is_the_checksum_of_everything_that_changes_a_number(plan: Callable[..., Plan]) -> None:
    (cell,) = plan().cells
    assert cell.key == cell_key(cell.spec)
    changes: list[dict[str, Any]] = [
        {"seed": 1}, {"n": 100}, {"threat": "linf:0.09"}, {"defense": "toy/mean[scale=2]"}, {"attack": "toy/slow"},
        {"dataset": "toy/blobs[n=599]"}, {"protocol": "standard"},
    ]  # fmt: skip
    keys = {plan(**change).cells[0].key for change in changes}
    assert len(keys | {cell.key}) == 1 + len(changes)
    for same in ({"workers": 2}, {"micro_batch": 3}, {"executor": "inline"}, {"data": "elsewhere"}, {"timeout": 3}):
        assert plan(**same).cells[0].key == cell.key


def test_each_cell_is_planned_once(plan: Callable[..., Plan]) -> None:
    cells = plan(defense="toy/mean,mean,toy/mean[scale=1],all", attack=["toy/shift", "shift"]).cells
    names = [(cell.defense, cell.attack) for cell in cells if cell.state == "run"]
    assert len(names) == len(set(names))
    assert names.count(("mean", "shift")) == 1


def test_minimal_norm_cells_of_several_radii_are_one(plan: Callable[..., Plan]) -> None:
    cells = plan(attack="toy/minimal,toy/shift", threat="linf:0.05,linf:0.1").cells
    assert sorted(cell.attack for cell in cells) == ["minimal", "shift", "shift"]


def test_cells_of_a_defense_stay_together_and_the_costliest_come_first(plan: Callable[..., Plan]) -> None:
    cells = plan(defense="toy/mean,toy/mean[scale=2],toy/noisy-mean", attack="lab/costly,lab/costly[steps=50],toy/shift").cells
    names = [cell.defense for cell in cells]
    assert names == sorted(names, key=names.index), "together"
    assert names[0] == "noisy-mean", "each of its passes is averaged over draws"
    draws = builtin_protocols()["quick"].eot
    assert draws > 1
    assert [cell.cost for cell in cells[:3]] == [100 * draws, 6 * draws, 0]
    assert [cell.cost for cell in cells[3:6]] == [100, 6, 0]


def test_shares_of_a_job_array_are_a_partition_that_the_store_does_not_move(plan: Callable[..., Plan], tmp_path: Path) -> None:
    fields = {"defense": "toy/mean,toy/mean[scale=2],toy/mean[scale=3]", "attack": "toy/shift,toy/slow"}
    parts = [{cell.key for cell in plan(**fields, shard=f"{i}/4").cells} for i in (1, 2, 3, 4)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 6
    store = Store.open(tmp_path / "store")
    for cell in plan(**fields).cells[:2]:
        stored = store.cell(cell.spec)
        stored.begin_attempt({}).finish("error", "no luck")
    assert [{cell.key for cell in plan(store, **fields, shard=f"{i}/4").cells} for i in (1, 2, 3, 4)] == parts


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"attack": "lab/choosy"}, "choosy needs at least 3 classes, the data set has 2"),
        ({"attack": "lab/nowhere"}, "unusable: "),
        ({"defense": "lab/around"}, "gradient attack on a non-differentiable defense without surrogate"),
        ({"defense": "lab/own-tail"}, "unusable: wrapper own-tail wraps itself"),
        ({"defense": "lab/raises"}, "unusable: KeyError: 'layer'"),
        ({"attack": "toy/shift", "threat": "linf"}, "shift needs a radius: write linf:EPS"),
    ],
)
def test_a_skipped_cell_says_why(plan: Callable[..., Plan], fields: dict[str, str], reason: str) -> None:
    (cell,) = plan(**fields).cells
    assert cell.state == "skip"
    assert cell.reason.startswith(reason)
    assert not cell.to_run


def test_a_defense_for_other_data_is_an_error_where_it_was_named_and_a_skip_among_all(plan: Callable[..., Plan]) -> None:
    with pytest.raises(UsageError, match="digits-only works on digits, not on blobs"):
        plan(defense="lab/digits-only")
    assert "works on digits" in reasons(plan(defense="all"))["digits-only x shift"]


def test_an_attack_without_all_its_parameters_is_an_error_where_it_was_named_and_a_skip_among_all(
    plan: Callable[..., Plan],
) -> None:
    with pytest.raises(InvalidParameter, match="lab/incomplete needs kind"):
        plan(attack="lab/incomplete")
    assert reasons(plan(attack="all"))["mean x incomplete"].startswith("needs parameters: `rbl show lab/incomplete`")
    with pytest.raises(InvalidParameter, match="has no parameter 'kinds'"):
        plan(attack="lab/incomplete[kinds=a],all")


def test_a_data_set_that_fails_is_named(plan: Callable[..., Plan]) -> None:
    with pytest.raises(PluginError, match=r"data set lab/sick of lab\.py failed: OSError: the disk is on fire"):
        plan(dataset="lab/sick")


def test_states_follow_the_store(plan: Callable[..., Plan], tmp_path: Path) -> None:
    import numpy as np

    store = Store.open(tmp_path / "store")
    (cell,) = plan(store, n=600).cells
    assert (cell.state, cell.reason, cell.shards) == ("run", "", 3)
    stored = store.cell(cell.spec)
    stored.write_shard(0, {"index": np.arange(256)})
    assert plan(store, n=600).cells[0].state == "partial 1/3"
    stored.begin_attempt({}).finish("timeout", "longer than 3 s\n  fix: raise --timeout")
    (failed,) = plan(store, n=600).cells
    assert (failed.state, failed.reason) == ("failed", "tried again: timeout: longer than 3 s")
    stored.write_shard(1, {"index": np.arange(256)})
    stored.write_shard(2, {"index": np.arange(88)})
    stored.commit(3)
    assert plan(store, n=600).cells[0].state == "cached"
    assert plan(store, n=600).counts() == {"cached": 1}
    (path,) = store.path.glob("cells/*/*/shard-00001.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert plan(store, n=600).cells[0].state == "failed", "a damaged shard is not taken for a result"


def test_why_a_result_is_stale(plan: Callable[..., Plan], tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    (cell,) = plan().cells
    old = cell.spec | {"attack": cell.spec["attack"] | {"version": 0}, "dataset": cell.spec["dataset"] | {"fingerprint": "x"}}
    store.cell(old).write_spec()
    assert plan(store).cells[0].reason == "stale: attack version, dataset fingerprint changed since the stored result"


def test_weights_are_given_by_label(plan: Callable[..., Plan], tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"weights")
    both = "toy/needs-training,lab/around[base=toy/needs-training]"
    planned = plan(defense=both, attack="toy/prints", weights={"needs-training": weights})
    assert [cell.state for cell in planned.cells] == ["run", "run"]
    assert all(str(weights) in cell.files.values() for cell in planned.cells)
    with pytest.raises(UsageError, match="weights were given for needs-training, which is not among the defenses to run"):
        plan(weights={"toy/needs-training": weights})


# ---------------------------------------------------------------------------------------------------------- protocols


def test_a_protocol_of_a_plugin(plan: Callable[..., Plan], registry: Registry) -> None:
    (cell,) = plan(protocol="lab/good", threat=(), attack="lab/costly").cells
    assert (cell.threat, cell.n, cell.cost) == ("linf:0.08", 16, 14)
    assert cell.spec["protocol"]["name"] == "good"
    assert plan(protocol="good", threat=(), attack="lab/costly").cells[0].key == cell.key
    # What is given in the selector wins over the protocol.
    assert plan(protocol="good", threat=(), attack="lab/costly[steps=5]").cells[0].cost == 10


def test_a_broken_protocol_costs_whoever_asks_for_it(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    found = contributed_protocols(registry)
    assert sorted(found) == ["lab/bad", "lab/good"]
    assert "protocol lab/gone of lab.py cannot be read" in caplog.text
    assert {"good", "quick", "standard"} == set(known_protocols(found))
    assert find_protocol("good", found).version == 3
    with pytest.raises(UsageError, match="lab/bad: unknown key 'versions'"):
        find_protocol("bad", found)
    with pytest.raises(UnknownName, match="no protocol 'goot'") as refused:
        find_protocol("goot", found)
    assert "'good'" in refused.value.hint


# ----------------------------------------------------------------------------------------------------------- outdated


def test_difference_names_what_changed() -> None:
    old = {"attack": {"version": 1, "parameters": {"a": 1}}, "seed": 0}
    assert difference(old, old) == ""
    assert difference(old, {"attack": {"version": 2, "parameters": {"a": 1, "b": 2}}, "seed": 1}) == (
        "attack parameters b, attack version, seed"
    )


def test_a_bases_version_counts(plan: Callable[..., Plan], registry: Registry, tmp_path: Path) -> None:
    (cell,) = plan(defense="lab/around", attack="toy/prints").cells
    old = cell.spec | {"defense": cell.spec["defense"] | {"base": cell.spec["defense"]["base"] | {"version": 7}}}
    outdated = Outdated([cell.spec, old], registry, tmp_path)
    assert outdated.why(cell.spec) == ""
    assert outdated.why(old) == "defense toy/mean was of version 7, installed is version 1"


def test_weights_of_a_model_that_brings_its_own(plan: Callable[..., Plan], registry: Registry, tmp_path: Path) -> None:
    (cell,) = plan().cells
    old = cell.spec | {"defense": cell.spec["defense"] | {"weights": "state:" + "0" * 64}}
    both = Outdated([cell.spec, old], registry, tmp_path)
    assert (both.why(cell.spec), both.why(old)) == ("", "defense mean: weights changed since")
    assert Outdated([old], registry, tmp_path).why(old) == "", "alone, it may have been given by hand"


def test_parameters_that_are_gone_make_a_result_old(plan: Callable[..., Plan], registry: Registry, tmp_path: Path) -> None:
    (cell,) = plan().cells
    old = cell.spec | {"attack": cell.spec["attack"] | {"parameters": {"momentum": 0.9}}}
    outdated = Outdated([cell.spec, old], registry, tmp_path)
    assert (outdated.why(cell.spec), outdated.why(old)) == ("", "attack toy/shift has other parameters by now")


def test_data_that_changed_make_a_result_old(plan: Callable[..., Plan], registry: Registry, tmp_path: Path) -> None:
    (cell,) = plan().cells
    old = cell.spec | {"dataset": cell.spec["dataset"] | {"fingerprint": "other"}}
    outdated = Outdated([cell.spec, old], registry, tmp_path)
    assert (outdated.why(cell.spec), outdated.why(old)) == ("", "dataset blobs: fingerprint changed since")


def test_a_wrapper_in_itself_is_refused(registry: Registry) -> None:
    info = resolve_dataset(registry, "toy/blobs", Path()).info
    with pytest.raises(PluginError, match="own-tail wraps itself: own-tail in own-tail"):
        resolve_defense(registry, "lab/own-tail", info)
    assert resolve_defense(registry, "lab/around[base=lab/around]", info).base is not None


# ------------------------------------------------------------------------------------------------- wrappers of several


def test_a_wrapper_of_several_is_given_all_of_them_and_keeps_them_in_its_spec(registry: Registry) -> None:
    from torch import nn

    info = resolve_dataset(registry, "toy/blobs", Path()).info
    found = resolve_defense(registry, "lab/several[bases=[toy/noisy-mean,lab/around,toy/mean[scale=3]]]", info)
    assert [base.label for base in found.bases] == ["noisy-mean", "around", "mean[scale=3]"]
    assert (found.base, found.weights_id) == (None, None)
    built = found.build()
    assert isinstance(built, nn.ModuleList)
    assert len(built) == 3
    spec = found.spec()
    assert spec["base"] is None
    assert [base["label"] for base in spec["bases"]] == ["noisy-mean", "around", "mean[scale=3]"]
    assert defense_from_spec(registry, spec, info, {}).spec() == spec
    assert "bases" not in resolve_defense(registry, "lab/around", info).spec(), "keys of other defenses stay as they are"
    assert resolve_defense(registry, "lab/several[bases=[toy/mean]]", info).spec()["bases"], "one of several is no base"


def test_what_a_wrapper_of_several_can_do_depends_on_each_of_them(registry: Registry) -> None:
    info = resolve_dataset(registry, "toy/blobs", Path()).info
    plain, noisy, around = (
        resolve_defense(registry, f"lab/several[bases=[toy/mean,{other}]]", info)
        for other in ("toy/mean", "toy/noisy-mean", "lab/around")
    )
    assert [each.stochastic for each in (plain, noisy, around)] == [False, True, False]
    assert [each.differentiable for each in (plain, noisy, around)] == [True, True, False]
    assert [each.attackable_by_gradient for each in (plain, noisy, around)] == [True, True, False], "nor is the whole"


def test_what_a_wrapper_of_several_wraps_is_looked_after(plan: Callable[..., Plan], registry: Registry, tmp_path: Path) -> None:
    (cell,) = plan(defense="lab/several").cells
    wrapped = cell.spec["defense"]["bases"]
    old = cell.spec | {"defense": cell.spec["defense"] | {"bases": [wrapped[0], wrapped[1] | {"version": 7}]}}
    outdated = Outdated([cell.spec, old], registry, tmp_path)
    assert outdated.why(old) == "defense toy/mean was of version 7, installed is version 1"
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"weights")
    planned = plan(defense="lab/several[bases=[toy/mean,toy/needs-training]]", weights={"needs-training": weights})
    assert [cell.state for cell in planned.cells] == ["run"]
    assert str(weights) in planned.cells[0].files.values()
    (itself,) = plan(defense="lab/around[base='lab/several[bases=[lab/own-tail]]']").cells
    assert itself.reason.startswith("unusable: wrapper own-tail wraps itself")
    (nothing,) = plan(defense="lab/several[bases=[]]").cells
    assert nothing.reason.startswith("unusable: wrapper lab/several of lab.py wraps nothing")


def test_shards() -> None:
    assert [count_shards(n) for n in (1, 256, 257, 10_000)] == [1, 1, 2, 40]


def test_missing_weights_name_the_command_with_the_data_set_as_it_was_asked_for(plan: Callable[..., Plan]) -> None:
    (cell,) = plan(defense="toy/needs-training", dataset="toy/blobs[n=100]").cells
    assert cell.state == "skip"
    assert cell.reason == "no weights: rbl train needs-training --dataset 'blobs[n=100]'"


def test_what_was_asked_and_means_less_than_it_seems_is_pointed_out(
    plan: Callable[..., Plan], caplog: pytest.LogCaptureFixture
) -> None:
    plan(threat="linf:8", n=10**6)
    assert "threat linf:8 holds every image of blobs" in caplog.text
    assert "write linf:8/255 for grey levels" in caplog.text
    assert "images to judge on; n = 1000000 takes them all" in caplog.text
    caplog.clear()
    plan(threat="linf:8/255", n=16)
    assert "every image" not in caplog.text
    assert "takes them all" not in caplog.text

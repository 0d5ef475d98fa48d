"""Attacks made of other attacks, and crafted on surrogates: what is planned, and what is refused before any work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustbench_lite import InvalidParameter, UnknownName, UsageError
from robustbench_lite.applicable import inapplicable
from robustbench_lite.outdated import Outdated, difference
from robustbench_lite.plan import Plan, PlannedCell
from robustbench_lite.planner import make_plan
from robustbench_lite.registry import Registry, load
from robustbench_lite.request import RunRequest
from robustbench_lite.resolve import attack_from_spec
from robustbench_lite.runner import WorkItem
from robustbench_lite.store import Store
from tests.support import TOY

TEAM = TOY.with_name("team.py")


@pytest.fixture(scope="module")
def registry() -> Registry:
    sys.modules.pop("team", None)
    return load([TOY, TEAM])


@pytest.fixture
def plan(registry: Registry) -> Callable[..., Plan]:
    def make(store: Store | None = None, **fields: Any) -> Plan:
        asked = {"dataset": "toy/blobs", "threat": "linf:0.08", "defense": "toy/mean", "attack": "team/team", "n": 32} | fields
        return make_plan(RunRequest.model_validate(asked), registry, store)

    return make


def only(plan: Plan) -> PlannedCell:
    (cell,) = plan.cells
    return cell


def test_members_are_part_of_the_key_and_survive_json(plan: Callable[..., Plan], registry: Registry) -> None:
    cell = only(plan())
    part = cell.spec["attack"]
    assert [(m["id"], m["version"], m["parameters"], m["label"]) for m in part["members"]] == [
        ("team/lighten", 1, {"draws": 1}, "lighten"),
        ("team/darken", 1, {}, "darken"),
    ]
    assert "surrogates" not in part
    again = attack_from_spec(registry, json.loads(json.dumps(part)))
    assert again.spec() == part
    turned = only(plan(attack="team/team[attacks=[team/darken,team/lighten]]"))
    assert [m["label"] for m in turned.spec["attack"]["members"]] == ["darken", "lighten"]
    assert turned.key != cell.key


def test_an_attack_of_its_own_has_the_spec_that_it_always_had(plan: Callable[..., Plan]) -> None:
    assert set(only(plan(attack="toy/shift")).spec["attack"]) == {"id", "version", "parameters", "label", "access", "goal"}


def test_a_protocols_parameters_hold_for_members_that_do_not_set_them(plan: Callable[..., Plan], tmp_path: Path) -> None:
    protocol = tmp_path / "more.yaml"
    protocol.write_text("name: more\nversion: 1\nattacks: {team/lighten: {draws: 7}}\n")
    named = "team/team[attacks=[lighten,'lighten[draws=2]',darken]]"
    members = only(plan(attack=named, protocol=str(protocol))).spec["attack"]["members"]
    assert [m["parameters"].get("draws") for m in members] == [7, 2, None]


@pytest.mark.parametrize(
    ("attacks", "error", "said"),
    [
        ("lightn", UnknownName, "member 'lightn' of team"),
        ("lighten[drws=3]", InvalidParameter, "lighten has no parameter 'drws'"),
        ("lighten[", InvalidParameter, "never closed"),
        ("team/team", UsageError, "team cannot be a member: it is made of other attacks itself"),
        ("team/borrows", UsageError, "borrows cannot be a member: it is made of other attacks itself"),
        ("team/gradient", UsageError, "gradient cannot be a member: it needs access 'gradient', and .* has 'scores'"),
    ],
)
def test_a_wrong_member_is_refused_before_any_work(
    plan: Callable[..., Plan], attacks: str, error: type[UsageError], said: str
) -> None:
    with pytest.raises(error, match=said):
        plan(attack=f"team/team[attacks=['{attacks}']]")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"attack": "team/team[attacks=[choosy]]"}, "member choosy: choosy needs at least 3 classes, the data set has 2"),
        ({"threat": "l2:0.5"}, "member lighten: norm l2 not supported by lighten (it has linf)"),
        ({"threat": "l1:0.5"}, "norm l1 not supported by team (it has linf, l2)"),
        ({"attack": "team/smallest", "threat": "linf:0.1"}, "member lighten: lighten needs a radius: write linf:EPS"),
        ({"attack": "team/nameless"}, "unusable: attack team/nameless of team.py named the members ()"),
        ({"attack": "team/confused"}, "unusable: attack team/confused of team.py could not name its members: KeyError: 'linf'"),
        ({"attack": "team/borrows[surrogates=[team/trainable]]"}, "no weights: rbl train trainable --dataset blobs"),
    ],
)
def test_a_composite_that_cannot_run_is_skipped_with_the_reason(
    plan: Callable[..., Plan], fields: dict[str, str], reason: str
) -> None:
    cell = only(plan(**fields))
    assert cell.state == "skip"
    assert cell.reason.startswith(reason)


def test_of_all_attacks_one_with_a_wrong_member_costs_its_own_cell(
    plan: Callable[..., Plan], registry: Registry, tmp_path: Path
) -> None:
    broken = tmp_path / "lone.py"
    broken.write_text(
        "from dataclasses import dataclass\nfrom robustbench_lite import AttackSpec, hookimpl\n@hookimpl\ndef rbl_attacks():\n"
        "    yield AttackSpec(name='lone', factory='lone:Lone', norms=('linf',), access='gradient')\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Lone:\n    def members(self, threat): return ('not-installed',)\n"
    )
    with_it = load([TOY, TEAM, broken])
    asked = {"dataset": "toy/blobs", "threat": "linf:0.08", "defense": "toy/mean", "n": 32}
    cells = make_plan(RunRequest.model_validate(asked | {"attack": "all"}), with_it, None).cells
    (lone,) = [cell for cell in cells if cell.attack == "lone"]
    assert lone.reason.startswith("unusable: member 'not-installed' of lone: ")
    with pytest.raises(UnknownName, match="member 'not-installed' of lone"):
        make_plan(RunRequest.model_validate(asked | {"attack": "lone/lone"}), with_it, None)


def test_the_cost_of_a_composite_is_that_of_its_members(plan: Callable[..., Plan]) -> None:
    named = "team/team[attacks=['rbl/square[queries=30]','rbl/square[queries=50]']]"
    assert only(plan(attack=named)).cost == 30 + 1 + 50 + 1


def test_minimal_norm_composites_name_their_members_for_the_norm_alone(plan: Callable[..., Plan]) -> None:
    cells = plan(attack="team/smallest[attacks=[closest]]", threat="linf:0.05,linf:0.1").cells
    assert [cell.spec["threat"] for cell in cells] == ["linf"]


# ---------------------------------------------------------------------------------------------------------- surrogates


def test_surrogates_are_part_of_the_key_with_their_weights(
    plan: Callable[..., Plan], registry: Registry, tmp_path: Path
) -> None:
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"weights")
    cell = only(plan(attack="team/borrows[surrogates=[trainable,mean-twice]]", weights={"trainable": weights}))
    assert cell.state == "run"
    first, second = cell.spec["attack"]["surrogates"]
    assert (first["label"], second["label"]) == ("trainable", "mean-twice")
    assert cell.files == {first["weights"]: str(weights)}
    assert second["weights"].startswith("state:")
    item = WorkItem.of(cell, RunRequest.model_validate({"defense": "toy/mean", "attack": "team/borrows"}), "cpu")
    assert json.loads(json.dumps(item.to_json()))["spec"] == cell.spec
    weights.write_bytes(b"other weights")
    changed = only(plan(attack="team/borrows[surrogates=[trainable,mean-twice]]", weights={"trainable": weights}))
    assert difference(cell.spec, changed.spec) == "attack surrogates trainable weights"


@pytest.mark.parametrize(
    ("surrogates", "error", "said"),
    [
        ("nobody", UnknownName, "surrogate 'nobody' of borrows"),
        ("mean-twice[depth=2]", InvalidParameter, "surrogate 'mean-twice.depth=2.' of borrows"),
        ("stairs", UsageError, "stairs gives no gradient to craft on"),
    ],
)
def test_a_wrong_surrogate_is_refused(plan: Callable[..., Plan], surrogates: str, error: type[UsageError], said: str) -> None:
    with pytest.raises(error, match=said):
        plan(attack=f"team/borrows[surrogates=['{surrogates}']]")


def test_on_a_surrogate_only_fixed_budgets_make_sense(plan: Callable[..., Plan]) -> None:
    with pytest.raises(UsageError, match="closest cannot be a member: on a surrogate nothing is found"):
        plan(attack="team/borrows[attack=closest]")


def test_crafting_on_the_defense_itself_is_no_transfer(plan: Callable[..., Plan]) -> None:
    cells = {cell.defense: cell for cell in plan(attack="team/borrows", defense="toy/mean,team/mean-twice").cells}
    assert cells["mean"].state == "run"
    assert cells["mean-twice"].state == "skip"
    assert cells["mean-twice"].reason.startswith("mean-twice is itself what borrows is crafted on")
    # The table says the same of its column, so that the row is ranked by its other attacks.
    attack = cells["mean"].spec["attack"]
    assert inapplicable(attack["surrogates"][0], attack) == cells["mean-twice"].reason
    assert inapplicable(cells["mean"].spec["defense"], attack) == ""


# ------------------------------------------------------------------------------------------------------------ outdated


def changed_part(spec: Any, key: str, **fields: Any) -> Any:
    parts = spec["attack"][key]
    return spec | {"attack": spec["attack"] | {key: [parts[0] | fields, *parts[1:]]}}


def test_a_members_new_version_makes_the_result_stale(plan: Callable[..., Plan], registry: Registry, tmp_path: Path) -> None:
    spec = only(plan()).spec
    old = changed_part(spec, "members", version=7)
    outdated = Outdated([spec, old], registry, tmp_path)
    assert outdated.why(spec) == ""
    assert outdated.why(old) == "attack team/lighten was of version 7, installed is version 1"
    store = Store.open(tmp_path / "store")
    store.cell(old).write_spec()
    assert only(plan(store)).reason == "stale: attack members lighten version changed since the stored result"


def test_a_members_parameters_and_a_surrogates_version_count(
    plan: Callable[..., Plan], registry: Registry, tmp_path: Path
) -> None:
    spec = only(plan()).spec
    gone = changed_part(spec, "members", parameters={"power": 2})
    assert Outdated([spec, gone], registry, tmp_path).why(gone) == "attack team/team has other parameters by now"
    spec = only(plan(attack="team/borrows")).spec
    old = changed_part(spec, "surrogates", version=7)
    outdated = Outdated([spec, old], registry, tmp_path)
    assert outdated.why(spec) == ""
    assert outdated.why(old) == "defense team/mean-twice was of version 7, installed is version 1"
    trained = changed_part(spec, "surrogates", weights="state:" + "0" * 64)
    both = Outdated([spec, trained], registry, tmp_path)
    assert (both.why(spec), both.why(trained)) == ("", "attack borrows: surrogates mean-twice weights changed since")


def test_a_new_sequence_of_members_is_a_difference(plan: Callable[..., Plan]) -> None:
    spec = only(plan()).spec
    turned = spec | {"attack": spec["attack"] | {"members": spec["attack"]["members"][::-1]}}
    assert difference(spec, turned) == "attack members"


def test_resolved_attacks_are_plain_data(plan: Callable[..., Plan], registry: Registry) -> None:
    found = attack_from_spec(registry, only(plan()).spec["attack"])
    assert replace(found, members=()).spec() == {k: v for k, v in found.spec().items() if k != "members"}

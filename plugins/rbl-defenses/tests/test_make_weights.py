"""`make weights`: what is made, in which order, and what is left alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from robustbench_lite import DatasetBundle
from robustbench_lite.registry import Registry, load
from robustbench_lite.weights import load_state, read_card, save_weights

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "src" / "rbl_defenses" / "weights" / "digits"

PLUGIN = """
from dataclasses import dataclass
from robustbench_lite import DefenseSpec, FittedDefense, hookimpl
from rbl_defenses.standard import Standard

@hookimpl
def rbl_defenses():
    yield DefenseSpec(name="student", factory="extra:Student", kind="trained")
    yield DefenseSpec(name="guard", factory="extra:Guard", kind="fitted")

@dataclass(frozen=True, kw_only=True)
class Student(Standard):
    teacher: str = "rbl/standard[width=4,epochs=1]"
    epochs: int | None = 1

@dataclass(frozen=True, kw_only=True)
class Guard(FittedDefense):
    base: str = "jpeg[base=extra/student]"

    def architecture(self, info, base): ...
    def fit(self, module, context): ...
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_weights", ROOT / "make_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["make_weights"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    file = tmp_path_factory.mktemp("plugins") / "extra.py"
    file.write_text(PLUGIN)
    return load([file])


def test_teachers_and_bases_are_made_first_whatever_their_parameters(
    script: ModuleType, registry: Registry, tmp_path: Path
) -> None:
    found = script.jobs(registry, ["extra/guard", "rbl/pgd-at", "rbl/awp"], tmp_path)
    assert {label: job.needs for label, job in found.items()} == {
        "standard[width=4,epochs=1]": set(),
        "student": {"standard[width=4,epochs=1]"},
        "guard": {"student"},  # through the wrapper, which has no weights
        "pgd-at": set(),
        "awp": set(),  # it needs a method, not its weights
    }
    names = {label: job.path.name for label, job in found.items()}
    assert names["pgd-at"] == "pgd-at.safetensors"
    assert names["standard[width=4,epochs=1]"].startswith("standard-")


def test_what_is_shipped_is_up_to_date(script: ModuleType, registry: Registry, digits: DatasetBundle) -> None:
    made = {path.stem for path in SHIPPED.glob("*.safetensors")}
    for job in script.jobs(registry, ["rbl/standard", "rbl/pgd-at", "rbl/trades"], SHIPPED).values():
        assert job.path.stem in made
        assert script.reason(registry, job, digits.info, digits.fingerprint) == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"version": 7}, "version is 1, was 7"),
        ({"seed": 3}, "seed is 0, was 3"),
        ({"dataset": {"name": "digits", "fingerprint": "other"}}, "other data"),
        ({"parameters": {"width": 8}}, "width changed"),
        ({"recipe": {"epochs": 59}}, "epochs changed"),
        ({"recipe": {"schedule": "step"}}, "schedule changed"),
    ],
)
def test_a_file_is_made_again_where_its_card_says_so(
    changed: dict[str, Any], said: str, script: ModuleType, registry: Registry, digits: DatasetBundle, tmp_path: Path
) -> None:
    source = SHIPPED / "standard.safetensors"
    card = read_card(source)
    for name, value in changed.items():
        card[name] = card[name] | value if name in ("parameters", "recipe") else value
    (job,) = script.jobs(registry, ["rbl/standard"], tmp_path).values()
    assert script.reason(registry, job, digits.info, digits.fingerprint) == "missing"
    save_weights(job.path, load_state(source), card)
    assert script.reason(registry, job, digits.info, digits.fingerprint) == said


def test_a_student_is_made_again_where_its_teacher_is(
    script: ModuleType, registry: Registry, digits: DatasetBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rbl_defenses.standard import Standard

    home = tmp_path / "home"
    monkeypatch.setenv("RBL_HOME", str(home))
    found = script.jobs(registry, ["extra/student"], home / "weights" / "digits")
    teacher, student = found["standard[width=4,epochs=1]"], found["student"]
    assert "has no weights" in _reason_with_a_file(script, registry, student, digits)
    # Weights that rbl train would have put there, from two seeds.
    import torch

    file = teacher.path.with_name(f"rbl--{teacher.path.name}")
    digests = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        module = Standard(width=4).architecture(digits.info)
        card = {"defense": "rbl/standard", "dataset": {"name": "digits"}, "version": 1}
        card["parameters"] = json.loads(json.dumps(teacher.found.parameters))
        digests.append(save_weights(file, module.state_dict(), card))
        if seed == 1:
            card = read_card(student.path) | {"teacher": {"id": "rbl/standard", "version": 1, "weights": digests}}
            save_weights(student.path, load_state(student.path), card)
            assert script.reason(registry, student, digits.info, digits.fingerprint) == ""
    assert script.reason(registry, student, digits.info, digits.fingerprint) == "another teacher"


def _reason_with_a_file(script: ModuleType, registry: Registry, job: Any, digits: DatasetBundle) -> str:
    source = SHIPPED / "standard.safetensors"
    card = read_card(source) | {"defense": "extra/student"}
    card["parameters"] = dict(job.found.parameters)
    card["recipe"] = card["recipe"] | {"epochs": 1}
    save_weights(job.path, load_state(source), card)
    return str(script.reason(registry, job, digits.info, digits.fingerprint))

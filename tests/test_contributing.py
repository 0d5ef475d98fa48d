"""The worked example of CONTRIBUTING.md trains, runs, and can be wrapped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robustbench_lite.cli import COMMANDS
from robustbench_lite.training import TrainedDefense
from tests.support import invoke

CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
(SECTION,) = re.findall(r"### A trained defense\n(.*?)\n### ", CONTRIBUTING, flags=re.DOTALL)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example as a file, with folders of its own for weights and results."""
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 52
    monkeypatch.setenv("RBL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RBL_STORE", str(tmp_path / "store"))
    (tmp_path / "mart.py").write_text(code, encoding="utf-8")
    return tmp_path / "mart.py"


def test_the_example_trains_runs_and_can_be_wrapped(plugin: Path) -> None:
    short = ("--set", "epochs=3", "--threads", 1, "--json")
    card = invoke("train", "mart/mart", *short, plugin=plugin).json["card"]
    history = card["history"]
    assert history[-1]["clean"] > 0.5  # chance is 0.1
    assert history[-1]["divergence"] > 0
    assert card["epochs"]["kept"] == card["epochs"]["best"]["epoch"]
    outer = invoke("train", "awp[method=mart/mart[epochs=3],warmup=2]", "--threads", 1, "--json", plugin=plugin).json["card"]
    assert outer["history"][:2] == history[:2]
    assert outer["history"][2] != history[2]
    run = ("run", "--defense", "mart/mart[epochs=3]", "--attack", "fgsm", "--n", 50, "--json")
    (table,) = invoke(*run, plugin=plugin).json["tables"]
    assert table["rows"][0]["clean_accuracy"]["value"] > 0.5


def test_its_commands_exist() -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", SECTION, flags=re.DOTALL)
    lines = [line.split() for line in block.strip().splitlines()]
    assert all(words[:3] == ["rbl", "--plugin", "mart.py"] and words[3] in COMMANDS for words in lines)


def test_every_hook_is_listed() -> None:
    hooks = set(re.findall(r"^\| `(\w+)\(", SECTION, flags=re.MULTILINE))
    declared = {name for name, value in vars(TrainedDefense).items() if callable(value) and not name.startswith("_")}
    assert hooks == declared - set(TrainedDefense.__abstractmethods__)

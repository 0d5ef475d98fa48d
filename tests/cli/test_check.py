"""``rbl check``: the suite from the command line, without pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import BROKEN_PLUGINS, environment, invoke

ATTACKS = BROKEN_PLUGINS / "broken_attacks.py"
OTHERS = BROKEN_PLUGINS / "broken_others.py"
SLOW = BROKEN_PLUGINS / "slow_attack.py"


def test_a_sound_attack_passes_with_a_line_for_each_check() -> None:
    said = invoke("check", "broken-attacks/sound", plugin=ATTACKS)
    lines = said.out.splitlines()
    assert lines[0] == "attack broken-attacks/sound (broken_attacks.py)"
    assert sum(line.startswith("  passed ") for line in lines) == 27
    assert "27 passed" in lines[-2]


def test_a_broken_attack_fails_with_the_reason_and_the_fix() -> None:
    said = invoke("check", "leavesball", plugin=ATTACKS, code=1)
    lines = said.out.splitlines()
    (failed,) = [i for i, line in enumerate(lines) if line.startswith("  FAILED")]
    assert "inside-the-ball" in lines[failed]
    assert "outside the threat model, the farthest at" in lines[failed]
    assert lines[failed + 1].strip() == "fix: return threat.project(x, x_adv)"
    assert "1 failed" in said.out


def test_a_device_that_is_not_there_is_the_users_mistake() -> None:
    said = invoke("check", "sound", "--device", "cuda:99", plugin=ATTACKS, code=2)
    assert "device cuda:99 is not there" in said.err
    assert "rbl doctor" in said.err


def test_json_says_the_same_as_data() -> None:
    (found,) = invoke("check", "weak", "--json", plugin=ATTACKS, code=1).json["objects"]
    assert (found["kind"], found["id"]) == ("attack", "broken-attacks/weak")
    assert found["counts"]["failed"] == 1
    (failed,) = [check for check in found["checks"] if check["status"] == "failed"]
    assert failed["check"] == "beats-a-linear-model"
    assert failed["reason"]
    assert failed["fix"]
    assert failed["seconds"] > 0


def test_a_namespace_stands_for_all_of_it_and_lists_what_matters() -> None:
    said = invoke("check", "broken-others", "--kind", "metric", plugin=OTHERS, code=1)
    assert "metric broken-others/share" in said.out
    assert "dataset" not in said.out
    assert "  passed " not in said.out
    assert said.out.count("FAILED") == 27


def test_a_plugin_that_imports_torch_is_reported_as_slow_and_its_errors_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, SLOW.stem, raising=False)  # as in a new process, whatever has run in this one
    said = invoke("check", "slow-attack", plugin=SLOW, code=1)
    assert "warning: slow_attack.py [slow-attack]: it is slow: importing it imports torch" in said.out
    assert "and nothing more" in said.out
    assert "slow: importing slow_attack imports torch (" in said.out
    assert "fix: import torch in the module of the factory, not in slow_attack" in said.out


def test_parameters_may_be_given_and_are_checked() -> None:
    (found,) = invoke("check", "minimal[overshoot=1.05]", "--json", plugin=ATTACKS).json["objects"]
    assert found["selector"] == "minimal[overshoot=1.05]"
    assert "overshoot" in invoke("check", "minimal[overshot=2]", plugin=ATTACKS, code=2).err


@pytest.mark.parametrize(
    ("name", "says"),
    [("broken-attacks/soudn", "broken-attacks/sound"), ("nothing-like-it", "rbl list"), ("sound[", "never closed")],
)
def test_a_name_that_stands_for_nothing_exits_with_2(name: str, says: str) -> None:
    assert says in invoke("check", name, plugin=ATTACKS, code=2).err


def test_a_name_of_several_kinds_asks_for_the_kind() -> None:
    said = invoke("check", "sound", plugin=OTHERS)
    assert said.out.startswith("dataset sound")
    said = invoke("check", "gaussian-noise", code=2)
    assert "rbl check gaussian-noise --kind attack" in said.err


def test_a_defense_is_checked_on_the_data_set_that_is_asked_for() -> None:
    said = invoke("check", "toy/mean", "--dataset", "toy/blobs")
    assert "passed   better-than-chance" in said.out
    assert "toy/blobs" in invoke("check", "toy/mean", "--dataset", "toy/blobz", code=2).err
    said = invoke("check", "toy/guessing", "--dataset", "toy/blobs", code=1)
    assert "FAILED   better-than-chance" in said.out
    assert "the gradient is exactly zero on 16 of 16 images" in said.out


def test_a_namespace_without_objects_of_the_kind_exits_with_2() -> None:
    assert (
        "broken-attacks brings no metric" in invoke("check", "broken-attacks", "--kind", "metric", plugin=ATTACKS, code=2).err
    )


def test_absent_data_are_skipped_and_nothing_has_failed(tmp_path: Path) -> None:
    said = invoke("check", "absent", "--data", tmp_path, plugin=OTHERS)
    assert "fix: fetch it" in said.out
    assert "skipped" in said.out


def test_it_needs_no_pytest(tmp_path: Path) -> None:
    (tmp_path / "pytest.py").write_text("raise ImportError('there is no pytest here')\n")
    code = "import sys; from robustbench_lite.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "--plugin", str(ATTACKS), "check", "globallyrandom"],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=str(tmp_path)),
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout

"""list, show, plugins, doctor, --version, --help and shell completion: what is there, and what is wrong with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import robustbench_lite
from robustbench_lite.cli import COMMANDS
from tests.support import TOY, command, environment, invoke

LOUD = """
import sys
print("hello from the import")
sys.stdout.write("and again\\n")
from robustbench_lite import AttackSpec, hookimpl

@hookimpl
def rbl_attacks():
    print("hello from the hook")
    yield AttackSpec(name="loud", factory="loud:Loud", norms=("linf",), access="none", summary="[bold]x[/bold] \\x1b[31mred")

class Loud: ...
"""
BROKEN = {
    "at_import": "raise RuntimeError('cannot start')\n",
    "exits": "import sys; sys.exit(3)\n",
    "misspelt_hook": "from robustbench_lite import hookimpl\n@hookimpl\ndef rbl_atacks():\n    return []\n",
    "no_attack": "from robustbench_lite import hookimpl\n@hookimpl\ndef rbl_attacks():\n    return ['pgd']\n",
    "no_module": "import a_module_that_is_not_there\n",
    "bad_norm": (
        "from robustbench_lite import AttackSpec, hookimpl\n@hookimpl\ndef rbl_attacks():\n"
        "    yield AttackSpec(name='a', factory='bad_norm:A', norms=('l3',), access='none')\n"
    ),
}


def fresh(code: str, *options: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_list_show_plugins_and_status_import_no_torch(tmp_path: Path) -> None:
    invoke("run", "--dataset", "toy/blobs", "--n", 8, "--threat", "linf:0.1", "--executor", "inline", "--defense", "toy/mean",
           "--attack", "toy/shift", "--store", tmp_path)  # fmt: skip
    lines = ["--help", "--version", "list", "list attacks --json", "plugins", "run --help", f"status --store {tmp_path}"]
    code = """
import contextlib, io, sys
from robustbench_lite.cli import main
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(line.split())
    if "torch" in sys.modules:
        raise SystemExit(f"rbl {line} imported torch")
"""
    lines = [line if "--" in line[:3] else f"--plugin {TOY} {line}" for line in lines]
    done = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_and_exits_with_0() -> None:
    done = invoke("--help", plugin=None)
    for name in COMMANDS:
        assert f"\n  {name} " in done.out
        if name != "check":
            assert "Usage: rbl" in invoke(name, "--help", plugin=None).out
    assert invoke("--version", plugin=None).out.strip() == f"rbl, version {robustbench_lite.__version__}"


def test_list() -> None:
    found = invoke("list", "--json").json
    by_id = {entry["id"]: entry for entry in found}
    assert by_id["toy/minimal"]["kind"] == "attack"
    assert by_id["toy/minimal"]["spec"]["goal"] == "minimal-norm"
    for kind in ("attacks", "defenses", "datasets", "metrics"):
        singular = kind.removesuffix("s")
        some = invoke("list", kind, "--json").json
        assert some == [entry for entry in found if entry["kind"] == singular]
        assert invoke("list", singular, "--json").json == some
        shown = invoke("list", kind).out
        assert all(entry["id"] in shown for entry in some)
    assert "quick" in invoke("list", "protocols").out
    everything = invoke("list").out
    assert all(identifier in everything for identifier in by_id)


def test_show() -> None:
    shown = invoke("show", "toy/slow").out
    for text in ("attack toy/slow", "linf, l2", "gradient", "seconds", "float", "0.2", "log"):
        assert text in shown
    found = invoke("show", "slow", "--json").json
    assert [(p["name"], p["type"], p["default"]) for p in found["parameters"]] == [
        ("seconds", "float", 0.2),
        ("log", "str", ""),
    ]
    assert found["spec"]["norms"] == ["linf", "l2"]
    assert "arXiv" in invoke("show", "pgd", plugin=None).out
    assert invoke("show", "rbl/digits", "--kind", "dataset", plugin=None).out.startswith("dataset rbl/digits")


def test_show_a_trained_defense_with_its_model_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBL_HOME", str(tmp_path))
    shown = invoke("show", "pgd-at", plugin=None).out
    for text in ("fidelity", "paper-formula", "Weights for digits", "shipped", "128 examples: clean=", "torch="):
        assert text in shown
    (found,) = invoke("show", "rbl/pgd-at", "--json", plugin=None).json["weights"]
    assert (found["dataset"], found["origin"], found["card"]["defense"]) == ("digits", "shipped", "rbl/pgd-at")
    variant = "standard[width=2,epochs=2,ema=0.5]"
    (missing,) = invoke("show", variant, "--dataset", "digits", "--json", plugin=None).json["weights"]
    assert f"rbl train '{variant}' --dataset digits" in missing["problem"]
    invoke("train", variant, "--threads", 1, plugin=None)
    (found,) = invoke("show", variant, "--dataset", "rbl/digits", "--json", plugin=None).json["weights"]
    assert (found["origin"], found["card"]["parameters"]["width"]) == ("trained here", 2)
    shown = invoke("show", variant, plugin=None).out
    for text in ("trained here", "epoch 2 of 2 (last)", "best epoch", "device=cpu, precision=float32, threads=1"):
        assert text in shown
    assert "weights" not in invoke("show", "pgd", "--json", plugin=None).json
    assert invoke("show", "jpeg", "--json", plugin=None).json["weights"] == []
    assert "has no weights of its own" in invoke("show", "jpeg", "--dataset", "digits", plugin=None, code=2).err
    assert "and rbl/pgd has none" in invoke("show", "pgd[steps=3]", plugin=None, code=2).err


def test_show_a_protocol_of_the_core() -> None:
    shown = invoke("show", "standard", "--kind", "protocol", plugin=None).out
    assert "cifar10" in shown
    assert "linf:8/255" in shown
    found = invoke("show", "quick", "--json", plugin=None).json
    assert found["version"] == 2


def test_what_a_plugin_prints_does_not_corrupt_json(tmp_path: Path) -> None:
    loud = tmp_path / "loud.py"
    loud.write_text(LOUD)
    done = subprocess.run(
        command("list", "attacks", "--json", plugin=loud), capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0
    assert "loud/loud" in [entry["id"] for entry in json.loads(done.stdout)]
    assert "hello from the import" in done.stderr
    shown = invoke("list", "attacks", plugin=loud).out
    assert "[bold]x[/bold]" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_costs_a_line_and_not_the_command(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / f"{name}.py"
    broken.write_text(BROKEN[name])
    done = invoke("--plugin", TOY, "list", "attacks", "--json", plugin=broken)
    assert "toy/shift" in [entry["id"] for entry in done.json]
    assert "1 plugin problem: `rbl plugins` says what" in done.err
    problems = invoke("plugins", "--json", plugin=broken, code=1).json["problems"]
    (problem,) = [p for p in problems if p["severity"] == "error"]
    assert name in f"{problem['plugin']} {problem['distribution']}"
    assert problem["cause"]
    assert problem["fix"]
    assert problem["cause"] in invoke("plugins", plugin=broken, code=1).out
    assert problem["cause"] in invoke("plugins", "--why", name, plugin=broken, code=1).out
    run = ("run", "--dataset", "toy/blobs", "--n", 8, "--threat", "linf:0.1", "--defense", "toy/mean", "--attack", "toy/shift")
    ran = invoke("--plugin", TOY, *run, "--executor", "inline", "--store", tmp_path / "s", plugin=broken)
    assert "done" in ran.err
    monkeypatch.setenv("RBL_STRICT_PLUGINS", "1")
    strict = invoke("list", plugin=broken, code=2)
    assert problem["cause"].split("\n")[0][:40] in strict.err
    assert strict.out == ""


def test_plugins_says_what_each_brings() -> None:
    found = invoke("plugins", "--json").json
    (toy,) = [p for p in found["plugins"] if p["namespace"] == "toy"]
    assert toy["counts"]["attack"] == 11
    assert found["problems"] == []
    assert "11 attacks" in invoke("plugins").out
    assert "rbl-attacks" in invoke("plugins", "--why", "pgd", plugin=None).out
    assert "is unknown" in invoke("plugins", "--why", "nothing-like-it", plugin=None, code=1).out


def test_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RBL_HOME", str(tmp_path))
    monkeypatch.setenv("RBL_DATA", str(tmp_path / "no data"))
    found = invoke("doctor", "--json", plugin=None).json
    assert found["versions"]["robustbench-lite"] == robustbench_lite.__version__
    assert "cpu" in found["devices"]
    assert found["data sets"]["rbl/digits"].startswith("found: 500 images")
    assert "RBL_DATA" in found["data sets"]["rbl/mnist"]
    assert found["weights"]["rbl/pgd-at on digits"].startswith("shipped")
    shown = invoke("doctor", plugin=None).out
    assert "versions" in shown
    assert "weights" in shown


def test_a_reader_who_has_had_enough_is_no_failure() -> None:
    for arguments in (("list",), ("show", "pgd"), ("plugins", "--json")):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            command(*arguments), stdout=write, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (0, "")


def test_shell_completion() -> None:
    asked = os.environ | {"_RBL_COMPLETE": "bash_complete", "COMP_WORDS": "rbl pl", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-m", "robustbench_lite"], capture_output=True, text=True, env=asked, check=False)
    assert done.stdout.split() == ["plain,plan", "plain,plugins"]
    asked |= {"COMP_WORDS": "rbl list d", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-m", "robustbench_lite"], capture_output=True, text=True, env=asked, check=False)
    assert done.stdout.split() == ["plain,defenses", "plain,datasets"]

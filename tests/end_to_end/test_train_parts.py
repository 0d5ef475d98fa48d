"""Training that needs more than data: a checkpoint after a kill, a teacher, a method inside, a base; what is run of it."""

from __future__ import annotations

import hashlib
import json
import random
import time
from pathlib import Path

import pytest

from tests.forked import Forge
from tests.support import Said, invoke

LAB = Path(__file__).parents[1] / "plugins" / "workshop.py"
KILLED = -9


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --------------------------------------------------------------------------------------------------- kills and checkpoints


TOY = ("--plugin", LAB, "train", "workshop/linear[epochs=60]", "--dataset", "workshop/stripes")
REAL = ("train", "pgd-at", "--set", "width=4", "--set", "epochs=10", "--set", "ema=0.9")


@pytest.mark.parametrize(
    ("train", "seed"),
    [(TOY, 0), (TOY, 1), *(pytest.param(REAL, seed, marks=pytest.mark.slow) for seed in (2, 3))],
)
def test_a_killed_run_that_is_resumed_gives_the_weights_of_one_that_was_not(
    train: tuple[object, ...], seed: int, forged: Forge, tmp_path: Path
) -> None:
    train = (*train, "--threads", 1, "--out", "w.safetensors")
    whole = forged.run(tmp_path / "whole", *train)
    run = forged.run(tmp_path / "killed", *train)
    chance = random.Random(seed)
    kills = 0
    for _ in range(2):
        run.until(" epoch ")
        time.sleep(chance.uniform(0, 0.3))
        run.kill()
        kills += run.wait() == KILLED
        run = forged.run(tmp_path / "killed", *train, "--resume")
    assert kills
    assert run.wait() == 0, run.said
    assert whole.wait() == 0, whole.said
    files = [tmp_path / folder / "w.safetensors" for folder in ("killed", "whole")]
    assert sha256(files[0]) == sha256(files[1])
    left = {path.name for path in (tmp_path / "killed").iterdir() if path.suffix != ".err"}
    assert left == {"w.safetensors", "w.json"}


def test_killed_in_the_middle_of_an_epoch(forged: Forge, tmp_path: Path) -> None:
    train = ("--plugin", LAB, "train", "workshop/linear[epochs=4,kill=3]", "--dataset", "workshop/stripes", "--threads", 1)
    train = (*train, "--out", "w.safetensors")
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "killed").touch()
    assert forged.run(tmp_path / "whole", *train).wait() == 0
    assert forged.run(tmp_path / "broken", *train).wait() == KILLED
    assert not (tmp_path / "broken" / "w.safetensors").exists()
    refused = forged.run(tmp_path / "broken", *train)
    assert refused.wait() == 2
    assert "--resume goes on from there, --restart starts over" in refused.said
    other = forged.run(tmp_path / "broken", *train, "--resume", "--seed", 1)
    assert other.wait() == 2
    assert "seed: 0 there, 1 here" in other.said
    resumed = forged.run(tmp_path / "broken", *train, "--resume")
    assert resumed.wait() == 0
    assert "epoch 2/4" not in resumed.said
    assert "epoch 3/4" in resumed.said
    assert sha256(tmp_path / "broken" / "w.safetensors") == sha256(tmp_path / "whole" / "w.safetensors")
    again = forged.run(tmp_path / "broken", *train, "--resume")  # nothing to go on from: from the start
    assert again.wait() == 0
    assert "epoch 1/4" in again.said
    assert sha256(tmp_path / "broken" / "w.safetensors") == sha256(tmp_path / "whole" / "w.safetensors")


def test_restart_starts_over(forged: Forge, tmp_path: Path) -> None:
    train = (
        "--plugin",
        LAB,
        "train",
        "workshop/linear[kill=2]",
        "--dataset",
        "workshop/stripes",
        "--threads",
        1,
        "--out",
        "w.safetensors",
    )
    assert forged.run(tmp_path / "f", *train).wait() == KILLED
    assert (tmp_path / "f" / "w.checkpoint").exists()
    again = forged.run(tmp_path / "f", *train, "--restart")
    assert again.wait() == 0
    assert "epoch 1/5" in again.said
    assert not (tmp_path / "f" / "w.checkpoint").exists()


# ----------------------------------------------------------------------------------------------- teachers, methods, bases


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RBL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RBL_STORE", str(tmp_path / "store"))
    return tmp_path / "home"


def lab(*arguments: object, code: int = 0) -> Said:
    return invoke(*arguments, plugin=LAB, code=code)


def train(defense: str, *options: object, code: int = 0) -> dict:
    said = lab("train", defense, "--dataset", "workshop/stripes", "--threads", 1, "--json", *options, code=code)
    return said.json if code == 0 else {"said": said.err}


def refused(defense: str) -> str:
    """What is said instead of attacking a defense."""
    asked = ("--dataset", "workshop/stripes", "--threat", "linf:0.05", "--attack", "rbl/pgd")
    return lab("run", "--defense", defense, *asked, code=2).err


def rows(*defenses: str) -> dict[str, dict]:
    asked = ("--dataset", "workshop/stripes", "--threat", "linf:0.05", "--attack", "rbl/pgd", "--n", 100, "--json")
    (table,) = lab("run", "--defense", ",".join(defenses), *asked).json["tables"]
    return {row["defense"]["label"]: row for row in table["rows"]}


def test_a_student_needs_its_teachers_weights_and_names_them(home: Path) -> None:
    missing = train("workshop/student", code=2)["said"]
    assert "linear has no weights for stripes" in missing
    assert "rbl train linear --dataset workshop/stripes" in missing
    teacher = train("workshop/linear")
    card = train("workshop/student")["card"]
    assert (card["teacher"]["id"], card["teacher"]["weights"]) == ("workshop/linear", [teacher["sha256"]])
    assert "teacher" not in teacher["card"]
    assert rows("workshop/student")["student"]["clean_accuracy"]["value"] > 0.9
    # The deployed student has no need of its teacher.
    for path in home.glob("weights/stripes/workshop--linear.*"):
        path.unlink()
    assert "student" in rows("workshop/student")


def test_more_data_come_from_the_data_set_that_is_named_and_are_told_with_every_result(home: Path) -> None:
    card = train("workshop/more")["card"]
    assert card["extra"]["label"] == "stripes[n=60]"
    assert card["extra"]["fingerprint"] == "stripes-60"
    assert {epoch["added"] for epoch in card["history"]} == {0.25}
    outer = train("workshop/outer[method=workshop/more]")["card"]
    assert outer["held_out"] == card["held_out"]
    train("workshop/linear")
    rows("workshop/more", "workshop/outer[method=workshop/more]", "workshop/linear")
    specs = [json.loads(path.read_text())["defense"] for path in home.parent.glob("store/cells/*/*/spec.json")]
    assert {spec["label"]: spec.get("extra_data") for spec in specs} == {
        "more": "stripes from elsewhere",
        "outer[method=workshop/more]": "stripes from elsewhere",
        "linear": None,
    }


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("rbl/digits", "digits has images of 1x8x8 in 10 classes, stripes of 1x4x4 in 2 classes"),
        ("workshop/strips", "did you mean 'workshop/stripes'"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_any_work(extra: str, said: str, home: Path) -> None:
    assert said in train(f"workshop/more[extra={extra}]", code=2)["said"]


def test_a_method_around_another_is_trained_and_deployed_as_that_is(home: Path) -> None:
    plain = train("workshop/linear[epochs=2]")
    outer = train("workshop/outer[method=workshop/linear[epochs=2]]")
    assert outer["card"]["method"]["label"] == "linear[epochs=2]"
    assert outer["card"]["held_out"] == plain["card"]["held_out"]
    noisy = train("workshop/outer[method=workshop/noisy]")
    assert noisy["card"]["method"]["id"] == "workshop/noisy"
    found = rows("workshop/outer[method=workshop/linear[epochs=2]]", "workshop/outer[method=workshop/noisy]")
    assert all(row["clean_accuracy"]["value"] > 0.9 for row in found.values())
    cells = [json.loads(path.read_text()) for path in home.parent.glob("store/cells/*/*/spec.json")]
    stochastic = {cell["defense"]["method"]["id"]: cell["defense"]["stochastic"] for cell in cells}
    assert stochastic == {"workshop/linear": False, "workshop/noisy": True}


@pytest.mark.parametrize(
    ("defense", "code", "said"),
    [
        ("workshop/outer[method=jpeg]", 2, "jpeg is not trained, so outer cannot be around it"),
        ("workshop/outer[method=workshop/outer]", 1, "is around another method and names 'workshop/outer'"),
        ("workshop/outer[method=workshop/lineer]", 2, "did you mean 'workshop/linear'"),
        ("workshop/outer[method=workshop/linear[epoch=2]]", 2, "did you mean 'epochs'"),
    ],
)
def test_what_a_method_cannot_be_around_is_said(defense: str, code: int, said: str, home: Path) -> None:
    assert said in lab("train", defense, "--dataset", "workshop/stripes", code=code).err


def test_weights_around_another_version_of_a_method_are_refused(home: Path) -> None:
    made = train("workshop/outer")
    assert "outer" in rows("workshop/outer")
    _edit(Path(made["path"]), method={**made["card"]["method"], "version": 7})
    assert "trained with a method that has changed since: version 7 then, 1 now" in refused("workshop/outer")


def test_a_detector_is_fitted_to_its_base_and_to_no_other(home: Path) -> None:
    missing = train("workshop/detector", code=2)["said"]
    assert "rbl train linear --dataset workshop/stripes" in missing
    base = train("workshop/linear")
    assert "no weights: rbl train detector --dataset" in refused("workshop/detector")
    made = train("workshop/detector")
    card = made["card"]
    assert card["base"]["weights"] == [base["sha256"]]
    assert card["recipe"] is None
    assert 0 < card["held_out"]["refused"] <= 0.1
    from safetensors import safe_open

    with safe_open(made["path"], "np") as file:
        assert sorted(file.keys()) == ["mean", "threshold"]
    assert rows("workshop/detector")["detector"]["clean_accuracy"]["value"] > 0.8
    train("workshop/linear", "--seed", 5)
    said = refused("workshop/detector")
    assert "trained with a base that has changed since" in said
    assert "rbl train detector --dataset" in said


def test_a_fitted_defense_must_be_declared_so(home: Path) -> None:
    train("workshop/linear")
    assert "declare kind='fitted'" in train("workshop/misdeclared", code=1)["said"]


def _edit(path: Path, **changed: object) -> None:
    """Rewrite the model card inside a file of weights."""
    from robustbench_lite.weights import load_state, read_card, save_weights

    save_weights(path, load_state(path), read_card(path) | changed)

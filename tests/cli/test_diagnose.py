"""Checks of models, from ``rbl run`` and ``rbl diagnose`` to what is stored, printed and ranked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robustbench_lite.diagnostics.catalogue import find_checks
from robustbench_lite.store import Store
from tests.support import TOY, Said, invoke

FLAGGED = TOY.with_name("flagged.py")
BLOBS = ["--dataset", "toy/blobs", "--threat", "linf:0.08"]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """RBL_STORE, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RBL_STORE", "results")
    return tmp_path / "results"


def command(name: str, defense: str, *others: object, code: int = 0) -> Said:
    extra = ["--attack", "toy/shift"] * ("--attack" not in others) + ["--n", "32"] if name in ("run", "plan") else []
    inline = ["--executor", "inline"] if name == "run" and "--executor" not in others else []
    asked = [name, "--defense", defense, *BLOBS, *extra, *inline, *others]
    return invoke("--plugin", FLAGGED, *asked, code=code)


def verdicts(said: Any, defense: str = "") -> dict[str, dict[str, Any]]:
    if isinstance(said, dict):
        rows = {row["defense"]["label"]: row["verdicts"] for row in said["tables"][0]["rows"]}
        return {v["check"]: v for v in rows[defense]}
    (only,) = said
    return {v["check"]: v for v in only["verdicts"]}


def stored(store: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in store.glob("verdicts/*/*/*.json") if path.stem != "spec"}


def outcomes(found: dict[str, dict[str, Any]], outcome: str) -> set[str]:
    return {name for name, verdict in found.items() if verdict["outcome"] == outcome}


# ------------------------------------------------------------------------------------------------------------ rbl run


def test_every_run_makes_the_cheap_checks_and_a_failing_one_costs_the_rank(store: Path) -> None:
    said = command("run", "flagged/sound,flagged/coarse", "--json")
    rows = {row["defense"]["label"]: row for row in said.json["tables"][0]["rows"]}
    assert rows["sound"]["rank"] == 1
    assert rows["sound"]["flags"] == []
    assert rows["coarse"]["rank"] is None
    flags = rows["coarse"]["flags"]
    assert any(flag.startswith("D6 zero-gradients: ") and "; try: offer a surrogate" in flag for flag in flags)
    assert outcomes(verdicts(said.json, "coarse"), "fail") == {"zero-gradients", "finite-differences"}
    assert outcomes(verdicts(said.json, "sound"), "fail") == set()
    assert "checks of coarse (blobs): D6 zero-gradients: zero or not finite on 32" in said.err
    report = invoke("--plugin", FLAGGED, "report").out
    assert "flagged: D6 zero-gradients" in report
    assert invoke("--plugin", FLAGGED, "report", "--json").json == said.json["tables"]


def test_an_attack_that_breaks_the_rules_ranks_nobody(store: Path) -> None:
    row = command("run", "flagged/sound", "--attack", "flagged/far", "--json").json["tables"][-1]["rows"][0]
    assert (row["rank"], row["attacks"]["far"]["status"]) == (None, "done")
    assert any("every point that far proposed for them broke a rule" in flag for flag in row["flags"])
    also = command("run", "flagged/sound", "--attack", "flagged/far,toy/shift", "--json").json["tables"][-1]["rows"][0]
    assert also["rank"] == 1
    assert any("judged not adversarial" in note for note in also["attacks"]["far"]["notes"])


def test_a_stored_result_is_shown_with_what_is_wrong_with_its_defense(store: Path) -> None:
    said = command("run", "flagged/coarse")
    assert "rbl: [1/1] checks of coarse (blobs): 2 fail, 1 not-applicable, 8 pass" in said.err
    shown = invoke("--plugin", FLAGGED, "show", "coarse under shift").out
    assert "Checks of the defense: 2 fail, " in shown
    found, advised = (line for line in shown.splitlines() if line.startswith("D6"))
    assert "zero or not finite on 32 by the cross-entropy" in found
    assert "offer a surrogate" in advised
    table = invoke("--plugin", FLAGGED, "report", "--json").json[0]
    assert invoke("--plugin", FLAGGED, "show", "coarse under shift", "--json").json["verdicts"] == table["rows"][0]["verdicts"]


def test_what_was_checked_is_not_checked_again(store: Path) -> None:
    command("run", "flagged/sound")
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.json")}
    assert len(stored(store)) >= 10
    again = command("run", "flagged/sound")
    assert "nothing left to run: 1 cell stored" in again.err
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*.json")} == before


def test_checks_are_made_for_results_that_have_none(store: Path) -> None:
    """A store that was filled by an earlier version."""
    command("run", "flagged/coarse")
    for path in store.glob("verdicts/*/*/*.json"):
        path.unlink()
    assert "1 set of checks still to be made" in command("run", "flagged/coarse").err
    assert stored(store)["zero-gradients"]["verdict"]["outcome"] == "fail"


def test_a_damaged_verdict_is_set_aside_and_made_again(store: Path) -> None:
    command("run", "flagged/coarse")
    (path,) = store.glob("verdicts/*/*/zero-gradients.json")
    path.write_text(path.read_text().replace('"fail"', '"pass"'))
    assert Store.open(store).check() == [f"{path.relative_to(store)}: its contents do not match its checksum"]
    said = command("run", "flagged/coarse", "--json")
    assert outcomes(verdicts(said.json, "coarse"), "fail") == {"zero-gradients", "finite-differences"}
    assert list(store.glob("quarantine/*/*zero-gradients.json"))
    assert Store.open(store).check() == [f"{p.relative_to(store)}: not a file of this store" for p in []]


def test_a_check_that_raises_is_a_verdict_and_no_failure_of_the_run(store: Path) -> None:
    said = command("run", "flagged/brittle", "--json")
    found = verdicts(said.json, "brittle")["finite-differences"]
    assert found["outcome"] == "not-applicable"
    assert found["evidence"] == "it could not be made: ValueError: only in single precision"
    assert [row["rank"] for row in said.json["tables"][0]["rows"]] == [1]


@pytest.mark.slow
def test_a_check_that_ends_the_process_costs_itself(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker dies; the cell is whole, the other checks are made next, and the deadly one is given up after two tries."""
    log = tmp_path / "log"
    monkeypatch.setenv("FLAGGED_LOG", str(log))
    first = command("run", "flagged/deadly", "--executor", "local", "--workers", "1", "--json")
    assert "checks of deadly (blobs): crashed: the worker process exited with code 7" in first.err
    assert first.json["tables"][0]["rows"][0]["rank"] == 1
    assert "randomness-undeclared" not in stored(store) or "verdict" in stored(store)["zero-gradients"]
    command("run", "flagged/deadly", "--executor", "local", "--workers", "1")
    done = command("run", "flagged/deadly", "--executor", "local", "--workers", "1", "--json")
    found = verdicts(done.json, "deadly")
    assert found["finite-differences"]["evidence"] == "its process was ended 2 times while it was made"
    assert outcomes(found, "fail") == set()
    assert found["few-classes"]["outcome"] == "pass"
    assert len(log.read_text().splitlines()) == 2
    assert "still to be made" not in done.err


def test_a_defense_that_cannot_be_loaded_fails_as_a_cell_not_as_a_check(store: Path) -> None:
    said = command("run", "flagged/lazy", code=2)
    assert "unusable: ValueError: later" in said.err
    assert not store.joinpath("verdicts").exists()


def test_a_plan_says_which_checks_a_run_will_make(store: Path) -> None:
    cheap = command("plan", "flagged/sound", "--json").json["checks"]
    assert [each["label"] for each in cheap] == ["checks of sound (blobs)"]
    assert "zero-gradients" in cheap[0]["checks"]
    every = command("plan", "flagged/sound", "--diagnose", "--json").json["checks"]
    assert [each["label"] for each in every] == ["checks of sound (blobs)", "checks of sound (blobs, linf:0.08)"]
    assert "black-box-stronger" in every[1]["checks"]
    standard = command("plan", "flagged/sound", "--protocol", "standard", "--json").json["checks"]
    assert len(standard) == 2
    assert len(command("plan", "flagged/sound", "--protocol", "standard", "--no-diagnose", "--json").json["checks"]) == 1
    command("run", "flagged/sound")
    assert command("plan", "flagged/sound", "--json").json["checks"] == []
    assert "checks of sound (blobs, linf:0.08): one-step-stronger, " in command("plan", "flagged/sound", "--diagnose").out


def test_the_expensive_checks_are_stored_and_shown_too(store: Path) -> None:
    pytest.importorskip("rbl_attacks")
    said = command("run", "flagged/coarse", "--diagnose", "--json")
    found = verdicts(said.json, "coarse")
    assert found["black-box-stronger"]["outcome"] == "fail"
    assert found["transfer-stronger"]["outcome"] == "not-applicable"
    assert "no weights" in found["transfer-stronger"]["evidence"] or "standard" in found["transfer-stronger"]["evidence"]
    assert len(stored(store)) == len({*found} - {check.name for check in find_checks(["judge"])})


# ------------------------------------------------------------------------------------------------------- rbl diagnose


def test_diagnose_prints_every_check_and_exits_with_1_where_one_fails(store: Path) -> None:
    sound = command("diagnose", "flagged/sound", "--checks", "D6,D12,few-classes")
    assert "sound (blobs, linf:0.08)" in sound.out
    assert [line.split()[1] for line in sound.out.splitlines()[4:7]] == [
        "zero-gradients",
        "randomness-undeclared",
        "few-classes",
    ]
    coarse = command("diagnose", "flagged/coarse", "--checks", "D6", code=1)
    assert "offer a surrogate" in coarse.out
    assert "coarse (blobs, linf:0.08): D6 zero-gradients: fail" in coarse.err
    again = command("diagnose", "flagged/coarse", "--checks", "D6", "--json", code=1)
    assert "D6" not in again.err  # it is stored
    (only,) = again.json
    assert only["defense"], only["threat"] == ("coarse", "linf:0.08")
    assert [v["check"] for v in only["verdicts"]] == ["zero-gradients"]


def test_diagnose_also_looks_at_what_is_stored(store: Path) -> None:
    """One attack by gradients and one without, from a run over the same examples."""
    asked = ["--attack", "fgsm,pgd,square[queries=100]", "--executor", "inline", "--n", "256"]
    invoke("--plugin", FLAGGED, "run", "--defense", "flagged/sound", *BLOBS, *asked)
    said = command("diagnose", "flagged/sound", "--checks", "D1,silent-success", "--json")
    found = verdicts(said.json)
    assert found["one-step-stronger"]["outcome"] == "pass"
    assert found["silent-success"]["evidence"] == "no example beaten on the way but not returned, under 3 attacks"


def test_diagnose_says_why_an_attack_fails(store: Path) -> None:
    said = command("diagnose", "flagged/coarse", "--checks", "D15", "--attack", "pgd[steps=5]")
    assert "why pgd[steps=5] fails" in said.out
    row = next(line for line in said.out.splitlines() if line.startswith("unavailable-gradients"))
    assert row.split()[1] == "1.00"
    plain = command("diagnose", "flagged/coarse", "--checks", "D15", "--attack", "pgd[steps=5]", "--json").json[0]["indicators"]
    assert plain["values"]["unavailable-gradients"] == 1
    assert 0 < plain["failed"] <= plain["n"] == 128


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--checks", "D18"], "no check 'D18'"),
        (["--checks", "zero-gradient"], "did you mean 'zero-gradients'"),
        (["--threat", "linf:8//255"], "linf:8//255"),
        (["--attack", "pgdd"], "unknown attack 'pgdd'; did you mean 'pgd'"),
        (["--attack", "cw-l2"], "norm linf not supported by cw-l2 (it has l2)"),
        (["--n", "0"], "--n"),
        (["--seed", "-1"], "--seed"),
        (["--protocol", "quik"], "did you mean 'quick'?"),
    ],
)
def test_what_cannot_be_diagnosed_is_said_in_words(changes: list[str], said: str) -> None:
    asked = ["--plugin", FLAGGED, "diagnose", "--defense", "flagged/sound", *BLOBS, "--checks", "D15"]
    assert said in invoke(*asked, *changes, code=2).err


def test_a_defense_that_cannot_be_diagnosed_is_said_in_words() -> None:
    assert "unknown defense 'nobody'" in command("diagnose", "nobody", code=2).err
    assert "later" in command("diagnose", "flagged/lazy", code=1).err
    missing = invoke("diagnose", "--defense", "toy/mean", "--dataset", "toy/blobs", code=2)
    assert "sets no threat model for data set blobs" in missing.err
    assert "rbl diagnose --defense toy/mean --dataset toy/blobs --threat" in missing.err

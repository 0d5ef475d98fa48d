"""``rbl train`` makes the weights that are shipped, and puts variants where ``rbl run`` finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import invoke, rbl, rbl_json


@pytest.mark.slow
@pytest.mark.parametrize("defense", ["standard", "pgd-at", "trades"])
def test_training_again_gives_the_robust_accuracy_of_the_shipped_weights(defense: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    home = {"RBL_HOME": str(tmp_path / "home"), "RBL_STORE": str(tmp_path / "store")}
    rbl("train", defense, "--dataset", "digits", "--seed", 0, "--threads", 1, "--out", mine, plugin=None, **home)
    run = ("run", "--defense", defense, "--attack", "pgd")
    shipped = _robust(rbl_json(*run, plugin=None, **home))
    again = _robust(rbl_json(*run, "--weights", f"{defense}={mine}", plugin=None, **home))
    assert shipped["low"] <= again["value"] <= shipped["high"]


def _robust(result: dict) -> dict[str, float]:
    (row,) = result["tables"][0]["rows"]
    return row["attacks"]["pgd"]["robust_accuracy"]


def test_a_variant_is_trained_kept_apart_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RBL_STORE", str(tmp_path / "store"))
    variant = "standard[epochs=2]"
    run = ("run", "--attack", "fgsm", "--n", 64, "--executor", "inline", "--defense")
    missing = invoke(*run, variant, plugin=None, code=2)
    assert "rbl train 'standard[epochs=2]' --dataset digits" in missing.out + missing.err
    trained = invoke("train", "standard", "--set", "epochs=2", "--threads", 1, "--json", plugin=None).json
    assert trained["card"]["parameters"]["epochs"] == 2
    assert Path(trained["path"]).is_file()
    found = invoke(*run, f"{variant},standard", "--json", plugin=None).json
    assert {row["defense"]["label"] for row in found["tables"][0]["rows"]} == {variant, "standard"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("jpeg",), "rbl train standard"),
        (("pgd-att",), "did you mean 'pgd-at'"),
        (("pgd-at", "--set", "epoch=3"), "did you mean 'epochs'"),
        (("pgd-at", "--set", "epochs"), "must read KEY=VALUE"),
        (("pgd-at", "--dataset", "digit"), "did you mean 'digits'"),
        (("pgd-at", "--out", "weights.pt"), "weights.safetensors"),
        (("pgd-at", "--device", "cuda:7"), "cuda:7"),
    ],
)
def test_what_cannot_be_trained_is_said_before_any_work(arguments: tuple[str, ...], said: str) -> None:
    failed = invoke("train", *arguments, plugin=None, code=2)
    assert said in failed.err

"""``rbl train`` makes the weights that are shipped, and puts variants where ``rbl run`` finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import rbl, rbl_json


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


def test_a_variant_is_trained_kept_apart_and_found(tmp_path: Path) -> None:
    home = {"RBL_HOME": str(tmp_path / "home"), "RBL_STORE": str(tmp_path / "store")}
    variant = "standard[epochs=2]"
    missing = rbl("run", "--defense", variant, "--attack", "fgsm", plugin=None, code=2, **home)
    assert "rbl train 'standard[epochs=2]' --dataset digits" in missing.stdout + missing.stderr
    trained = rbl_json("train", "standard", "--set", "epochs=2", "--threads", 1, plugin=None, **home)
    assert trained["card"]["parameters"]["epochs"] == 2
    assert Path(trained["path"]).is_file()
    found = rbl_json("run", "--defense", f"{variant},standard", "--attack", "fgsm", plugin=None, **home)
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
    failed = rbl("train", *arguments, plugin=None, code=2)
    assert said in failed.stderr
    assert "Traceback" not in failed.stderr

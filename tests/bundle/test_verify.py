"""Judging again: honest results are verified, and each kind of forgery is refuted or at least not believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_lite.bundle import import_bundle
from robustbench_lite.provenance import Check, Origin
from robustbench_lite.store import Store
from tests.forging import Arrays, named
from tests.support import Said, invoke, written


def verify(path: Path, *options: object, code: int = 0) -> list[dict[str, Any]]:
    """What `rbl verify --json` says of a bundle."""
    found: list[dict[str, Any]] = invoke("verify", path, *options, "--json", code=code).json
    return found


def test_honest_results_are_verified(several: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    invoke("import", several, "--store", mine)
    found = verify(several, "--shards", "all", "--store", mine)
    assert [each["outcome"] for each in found] == ["verified"] * 4
    assert all(each["shards"] == [0, 1] and each["differ"] == each["allowed"] == 0 for each in found)
    assert all(each["rejudged"] > 100 for each in found)
    stored = [cell.origin.check for cell in Store.open(mine).cells() if cell.origin and cell.origin.check]
    assert [check.outcome for check in stored] == ["verified"] * 4


def test_shards_are_drawn_by_a_seed_that_is_told(bare: Path) -> None:
    said = invoke("verify", bare)
    assert "1 of 2 shards run again" in said.out
    assert "drawn by --seed" in said.out
    assert "what was found of 1 result was not stored: this store does not have them (rbl import" in said.err
    drawn = {tuple(verify(bare, "--seed", seed)[0]["shards"]) for seed in range(16)}
    assert drawn == {(0,), (1,)}
    assert verify(bare, "--seed", 3)[0]["shards"] == verify(bare, "--seed", 3)[0]["shards"]


def test_results_of_ones_own_are_checked_and_nothing_is_stored(bare: Path, made: Path) -> None:
    said = invoke("verify", bare, "--store", made)
    assert said.out.startswith("verified")
    assert "what was found of 1 result was not stored: this store has run them itself" in said.err
    assert all(cell.origin is None for cell in Store.open(made).cells())


def test_without_a_run_nothing_is_verified(bundle: Path) -> None:
    (found,) = verify(bundle, "--shards", 0, code=1)
    assert found["outcome"] == "unverified"
    assert "no shard was run again" in found["said"]
    assert found["rejudged"] > 100


def claim_robust(rows: slice) -> Callable[[Arrays], None]:
    """Claim that no example of these rows was beaten, in every column that says so."""

    def change(arrays: Arrays) -> None:
        beaten = np.zeros(len(arrays["y"]), dtype=bool)
        beaten[rows] = arrays["success"][rows]
        arrays["success"][beaten] = False
        arrays["size"][beaten] = np.inf
        arrays["adv_pred"][beaten] = arrays["clean_pred"][beaten]
        arrays["source"][beaten] = 0
        arrays["rejected"][beaten] = 1
        for name in ("linf", "l2", "l1", "l0", "entropy"):
            arrays[name][beaten] = 0
        for name in ("logits", "margin", "p"):
            arrays[f"{name}_adv"][beaten] = arrays[f"{name}_clean"][beaten]
        arrays["adv_rate"][beaten] = arrays["clean_rate"][beaten]

    return change


def test_robustness_that_is_not_there(forged: Callable[..., Path], bare: Path, tmp_path: Path) -> None:
    """The lie that pays. It passes every check of form, no image can show it, and running the attack again does."""
    path = forged(source=bare, arrays=claim_robust(slice(None)))
    mine = tmp_path / "mine"
    invoke("import", path, "--store", mine)
    (found,) = verify(path, "--store", mine, code=1)
    assert found["outcome"] == "refuted"
    assert "are beaten here and not there" in found["said"]
    origin = named(mine).origin
    assert origin is not None
    assert origin.status == "refuted"


def test_a_few_changed_outcomes_are_enough_where_device_and_versions_are_the_same(
    forged: Callable[..., Path], bare: Path
) -> None:
    path = forged(source=bare, arrays=claim_robust(slice(0, 3)))
    (found,) = verify(path, "--shards", "all", code=1)
    assert found["outcome"] == "refuted"
    assert 0 < found["differ"] <= 6
    assert found["allowed"] == 0


def test_elsewhere_rounding_is_allowed_for_and_no_more(forged: Callable[..., Path], bare: Path) -> None:
    def elsewhere(manifest: dict[str, Any]) -> None:
        for summary in manifest["cells"].values():
            summary["environment"]["device"] = "another device"

    few = forged(source=bare, arrays=claim_robust(slice(0, 2)), manifest=elsewhere)
    (found,) = verify(few, "--shards", "all")
    assert found["outcome"] == "verified"
    assert found["differ"] > 0
    assert "2% may" in found["said"]


def test_many_changes_are_refuted_elsewhere_too(forged: Callable[..., Path], bare: Path) -> None:
    def elsewhere(manifest: dict[str, Any]) -> None:
        for summary in manifest["cells"].values():
            summary["environment"]["device"] = "another device"

    (found,) = verify(forged(source=bare, arrays=claim_robust(slice(0, 60)), manifest=elsewhere), "--shards", "all", code=1)
    assert found["outcome"] == "refuted"


def test_changed_predictions(forged: Callable[..., Path], bare: Path) -> None:
    """All that a table is made of, changed so that it fits: the defense is never wrong."""

    def flawless(arrays: Arrays) -> None:
        wrong = ~arrays["clean_correct"]
        arrays["clean_pred"][wrong] = arrays["adv_pred"][wrong] = arrays["y"][wrong]
        arrays["clean_correct"][:] = True
        arrays["rejected"][wrong] = 1
        for name in ("clean", "adv"):
            arrays[f"logits_{name}"][wrong] = -arrays[f"logits_{name}"][wrong]

    (found,) = verify(forged(source=bare, arrays=flawless), "--shards", 0, code=1)
    assert found["outcome"] == "refuted"
    assert "of 300 clean answers" in found["said"]


def test_images_that_beat_nothing(forged: Callable[..., Path]) -> None:
    """Successes that are none: the images lie in the ball, have the size that is claimed, and are classified correctly."""

    def harmless(images: Arrays) -> None:
        images["x_adv"] = (images["x"] + (images["x"] - images["x_adv"])).clip(0, 1)

    (found,) = verify(forged(images=harmless), "--shards", 0, code=1)
    assert found["outcome"] == "refuted"
    assert "are beaten there and not here" in found["said"]


def test_images_of_other_data(forged: Callable[..., Path]) -> None:
    def shifted(images: Arrays) -> None:
        for name in ("x", "x_adv"):
            images[name] = (images[name] * 0.999).astype(np.float32)

    def fitting(arrays: Arrays) -> None:
        for name in ("size", "linf"):
            arrays[name] *= 0.999

    (found,) = verify(forged(images=shifted, arrays=fitting), "--shards", 0, code=1)
    assert found["outcome"] == "refuted"
    assert "clean images are not those of the data set" in found["said"]


def test_labels_that_are_not_those_of_the_data(forged: Callable[..., Path], bare: Path) -> None:
    def relabelled(arrays: Arrays) -> None:
        claim_robust(slice(None))(arrays)
        arrays["y"] = arrays["clean_pred"].copy()
        arrays["clean_correct"][:] = True
        arrays["y"][0] = 1 - arrays["y"][0]
        arrays["clean_correct"][0] = False

    (found,) = verify(forged(source=bare, arrays=relabelled), code=1)
    assert found["outcome"] == "refuted"
    assert "labels of shard" in found["said"]


def test_another_models_hash(forged: Callable[..., Path], bare: Path) -> None:
    path = forged(source=bare, spec={"defense": {"weights": "a" * 64}})
    (found,) = verify(path, code=1)
    assert found["outcome"] == "unverified"
    assert "mean is another model here: weights differs" in found["said"]
    assert "a" * 64 in found["said"]


TWO = """
from dataclasses import dataclass
import torch
from robustbench_lite import DefenseSpec, hookimpl

@hookimpl
def rbl_defenses():
    yield DefenseSpec(name="tilted", factory="two:Tilted")

@dataclass(frozen=True, kw_only=True)
class Tilted:
    threshold: float = 0.5

    def __call__(self, info, weights):
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        with torch.no_grad():
            module[1].weight.copy_(torch.tensor([[-5.0], [5.0]]).expand(2, 16))
            module[1].bias.copy_(torch.tensor([80.0, -80.0]) * self.threshold)
        return module
"""


def test_the_results_of_one_model_under_the_hash_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a better model has earned, handed in for a worse: the hash is right, and the worse model is asked."""
    two, store = written(tmp_path, "two", TWO), tmp_path / "store"

    def rbl(*arguments: object, code: int = 0) -> Said:
        return invoke("--plugin", two, *arguments, code=code)

    request = ("run", "--dataset", "toy/blobs", "--n", 300, "--threat", "linf:0.02", "--executor", "inline", "--store", store)
    rbl(*request, "--defense", "two/tilted,two/tilted[threshold=0.53]", "--attack", "toy/shift")
    good, bad = named(store, "tilted"), named(store, "tilted[threshold=0.53]")
    assert good.spec["defense"]["weights"] != bad.spec["defense"]["weights"]
    forged = Store.open(tmp_path / "forged").cell(bad.spec)
    for number in range(2):
        forged.write_shard(number, good.read_shard(number))
    forged.write_attempt({}, 1.0)
    forged.commit(2)
    rbl("export", tmp_path / "forged.zip", "--store", tmp_path / "forged")
    refuted = rbl("verify", tmp_path / "forged.zip", "--shards", 0, code=1).out
    assert "refuted    tilted[threshold=0.53] under shift" in refuted
    assert "clean answers" in refuted


def test_what_is_not_installed_here(several: Path) -> None:
    found: list[dict[str, Any]] = invoke("verify", several, "--json", plugin=None, code=1).json
    assert {each["outcome"] for each in found} == {"unverified"}
    assert "toy/blobs" in found[0]["said"]


def test_another_version_of_the_attack(forged: Callable[..., Path], bare: Path) -> None:
    (found,) = verify(forged(source=bare, spec={"attack": {"version": 7}}), code=1)
    assert found["outcome"] == "unverified"
    assert "attack shift is another here: version differs" in found["said"]


def test_what_was_refuted_is_cleared_only_by_a_whole_run() -> None:
    def found(outcome: str, *shards: int) -> Check:
        return Check.model_validate({"outcome": outcome, "said": outcome, "shards": shards, "of_shards": 2})

    fresh = Origin(bundle="a" * 64)
    refuted = fresh.after(found("refuted", 0))
    assert refuted.after(found("verified", 1)) == refuted
    assert refuted.after(found("unverified")) == refuted
    assert refuted.after(found("verified", 0, 1)).status == "verified"
    verified = fresh.after(found("verified", 1))
    assert verified.after(found("unverified")) == verified
    assert verified.after(found("refuted", 0)).status == "refuted"


def test_the_verdict_of_a_changed_bundle_is_not_stored_with_the_result(
    bundle: Path, forged: Callable[..., Path], bare: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    import_bundle(bundle, Store.open(mine))
    verify(forged(source=bare, arrays=claim_robust(slice(None))), "--store", mine, code=1)
    origin = named(mine).origin
    assert origin is not None
    assert origin.check is None


def test_asked_wrongly(bundle: Path, tmp_path: Path) -> None:
    assert "name a bundle, or --all" in invoke("verify", code=2).err
    assert "name a bundle, or --all" in invoke("verify", bundle, "--all", code=2).err
    assert "neither a number nor 'all'" in invoke("verify", bundle, "--shards", "some", code=2).err
    assert "there is no device cuda:99" in invoke("verify", bundle, "--device", "cuda:99", code=2).err
    assert "one device" in invoke("verify", bundle, "--device", "auto", code=2).err
    assert "no results in" in invoke("verify", "--all", "--store", tmp_path / "s", code=2).err

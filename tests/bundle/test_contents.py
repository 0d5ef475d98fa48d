"""Bundles whose every checksum is right, and whose contents no judge has written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_lite.bundle import import_bundle
from robustbench_lite.errors import InvalidBundle
from robustbench_lite.store import Store
from tests.forging import Arrays


def put(name: str, value: Any, row: int | None = 0) -> Callable[[Arrays], None]:
    """Set one row of an array, or, for None, all of it."""

    def change(arrays: Arrays) -> None:
        arrays[name][slice(None) if row is None else row] = value

    return change


def become(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], None]:
    """Replace an array."""

    def change(arrays: Arrays) -> None:
        arrays[name] = make(arrays[name])

    return change


def robust_after_all(arrays: Arrays) -> None:
    """Turn successes into failures, in all columns that one thinks of at first."""
    arrays["success"][:] = False
    arrays["size"][:] = np.inf
    arrays["adv_pred"] = arrays["clean_pred"].copy()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (put("margin_clean", np.nan), "'margin_clean' has 2 values that are not finite"),
        (put("p_clean", 1.5), r"'p_clean' has 2 values that are not in \[0, 1\]"),
        (put("size", np.nan), "'size' has 2 values that are not 0 or more"),
        (put("linf", -0.1), "'linf' has 2 values that are not finite and 0 or more"),
        (put("index", -1), "'index' has 2 values that are not 0 or more"),
        (put("rejected", 200), "'rejected' has 2 values that are not in"),
        (put("source", 9), "'source' has 2 values that are not in"),
        (become("y", lambda a: a.astype(np.float64)), "'y' is of type float64"),
        (become("success", lambda a: a.astype(np.uint8)), "'success' is of type uint8"),
        (become("p_adv", lambda a: a[:, None]), r"'p_adv' has shape \(300, 1\)"),
        (become("logits_clean", lambda a: a[:, 0]), r"'logits_clean' has shape \(300,\)"),
        (lambda arrays: arrays.pop("unstable"), "'unstable' is missing"),
        (lambda arrays: arrays.update(extra=arrays["y"]), "'extra' is not one that this version knows"),
        (become("index", lambda a: a[::-1]), "not the subset that its spec names"),
        (put("index", 7, None), "an example stands twice"),
        (become("clean_pred", lambda a: 1 - a), "clean_correct is not whether clean_pred is the label"),
        (put("clean_correct", True, None), "clean_correct is not whether clean_pred is the label"),
        (put("success", True, None), "a success"),
        (put("size", 0.5, None), "a size without a success|outside the threat model"),
        (put("size", 0.001, None), "a size without a success|size is not the linf distance"),
        (robust_after_all, "a success without a source, or a source without one"),
    ],
)
def test_arrays(forged: Callable[..., Path], tmp_path: Path, change: Callable[[Arrays], None], match: str) -> None:
    with pytest.raises(InvalidBundle, match=match) as caught:
        import_bundle(forged(arrays=change), Store.open(tmp_path / "mine"))
    assert "(mean under shift)" in caught.value.message


def changed_predictions(arrays: Arrays) -> None:
    """Claim that the defense is right where it is wrong, consistently but for the logits."""
    arrays["clean_pred"] = arrays["y"].copy()
    arrays["clean_correct"][:] = True
    arrays["adv_pred"] = np.where(arrays["success"], arrays["adv_pred"], arrays["y"])


def test_changed_predictions_do_not_fit_the_logits(forged: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match="clean_pred is not the best of logits_clean"):
        import_bundle(forged(arrays=changed_predictions), Store.open(tmp_path / "mine"))


def outside(images: Arrays) -> None:
    images["x_adv"] = np.clip(images["x"] + np.sign(images["x_adv"] - images["x"]) * 0.2, 0, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (outside, "lie outside the threat model linf:0.08, that of example"),
        (put("x_adv", np.nan), "x_adv hold values that are not in"),
        (put("x_adv", 1.5), "x_adv hold values that are not in"),
        (put("x", -1), "x hold values that are not in"),
        (become("x_adv", lambda a: a.astype(np.float64)), "float32 .* and float64"),
        (become("x_adv", lambda a: a[:, :, :2]), "not float32 of one shape"),
        (lambda images: images.update({k: images[k][..., :2].copy() for k in ("x", "x_adv")}), "'values' is not the product"),
        (put("index", 10**6), "none of its own"),
        (lambda images: images["index"].__setitem__(0, images["index"][1]), "two images of one example"),
        (lambda images: images.pop("x"), "its images are index, x_adv"),
        (lambda images: images.update(x_adv=images["x"]), "do not have the sizes"),
    ],
)
def test_images(forged: Callable[..., Path], tmp_path: Path, change: Callable[[Arrays], None], match: str) -> None:
    with pytest.raises(InvalidBundle, match=match):
        import_bundle(forged(images=change), Store.open(tmp_path / "mine"))


def test_images_of_examples_that_are_said_to_be_robust(forged: Callable[..., Path], tmp_path: Path) -> None:
    def claim(arrays: Arrays) -> None:
        robust_after_all(arrays)
        arrays["source"][:] = 0
        arrays["rejected"][arrays["clean_correct"]] = 1
        for name in ("linf", "l2", "l1", "l0"):
            arrays[name][:] = 0
        arrays["logits_adv"] = arrays["logits_clean"].copy()

    with pytest.raises(InvalidBundle, match="changed images of examples that it says were not beaten"):
        import_bundle(forged(arrays=claim), Store.open(tmp_path / "mine"))


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"format": 2}, "spec has format 2, this robustbench-lite reads 1"),
        ({"threat": "linf:8//255"}, "spec.json: threat"),
        ({"protocol": {"eot": 0}}, "spec.json: protocol.eot"),
        ({"defense": {"stochastic": "no"}}, "spec.json: defense.stochastic"),
        ({"attack": {"access": "root"}}, "spec.json: attack.access"),
        ({"seed": "0"}, "spec.json: seed"),
        ({"surprise": True}, "spec.json: surprise"),
        ({"protocol": {"n": 200}}, "300 examples|200 examples were asked for"),
        ({"threat": "linf:0.01"}, "a success outside the threat model"),
    ],
)
def test_specs(forged: Callable[..., Path], tmp_path: Path, spec: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidBundle, match=match):
        import_bundle(forged(spec=spec), Store.open(tmp_path / "mine"))


def test_a_manifest_that_names_another_model(forged: Callable[..., Path], tmp_path: Path) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        for summary in manifest["cells"].values():
            summary["model"] = ["0" * 64]

    with pytest.raises(InvalidBundle, match=r"the manifest says model 0{64}, its spec state:"):
        import_bundle(forged(manifest=rename), Store.open(tmp_path / "mine"))


def test_every_array_that_the_judge_writes_is_known(several: Path, made: Path, tmp_path: Path) -> None:
    """Whoever adds a column to the judge adds it to ``contents.COLUMNS``: otherwise nobody's results could be imported."""
    assert len(import_bundle(several, Store.open(tmp_path / "mine")).new) == len(list(Store.open(made).cells())) == 4

"""Every check finds the defense that is broken in its way, and nothing else is wrong with that defense."""

from __future__ import annotations

from functools import cache

import pytest

from robustbench_lite.registry import Registry, load
from robustbench_lite.testing import DEFENSE_SUITE, DefenseSubject, Outcome, check_defense
from tests.support import BROKEN_PLUGINS, failures

BROKEN = {
    "wrong-shape": {"logits-shape"},
    "cannot-refuse": {"logits-shape"},
    "half": {"float32"},
    "nan-on-plain": {"finite"},
    "softmax": {"logits-not-probabilities"},
    "reversed": {"better-than-chance"},
    "counts": {"state-unchanged"},
    "dropout-on": {"state-unchanged"},
    "in-place": {"input-unchanged"},
    "draws-unused": {"global-generator-unused"},
    "draws-from-numpy": {"global-generator-unused"},
    "undeclared-noise": {"stochastic-flag", "global-generator-unused"},
    "declared-noise": {"stochastic-flag"},
    "own-generator": {"keyed-draws"},
    "batch-noise": {"batch-does-not-matter"},
    "batch-mean": {"batch-does-not-matter"},
    "rounds": {"gradient"},
    "left-behind": {"device-of-the-images"},
    "makes-on-the-cpu": {"device-of-the-images"},
    "asks-numpy": {"device-of-the-images"},
    "no-surrogate": {"gradient"},
    "autograd": {"no-autograd-inside"},
    "other-every-time": {"same-module-twice"},
    "not-a-module": {"builds"},
    "raises": {"builds"},
}
EVERYWHERE = {"plugin-problems", "spec-is-complete", "light-import", "parameters-are-valid", "weights-found"}


@cache
def registry() -> Registry:
    return load([BROKEN_PLUGINS / "broken_defenses.py"], entry_points=False)


def check(name: str) -> list[Outcome]:
    """The outcomes; the plugin is one file, which imports torch: that check is made elsewhere."""
    found = check_defense(registry(), f"broken-defenses/{name}", dataset="broken-defenses/greys")
    return [outcome for outcome in found if outcome.check != "light-import"]


@pytest.mark.parametrize("name", BROKEN)
def test_finds_exactly_what_is_broken(name: str) -> None:
    outcomes = check(name)
    assert failures(outcomes).keys() == BROKEN[name], failures(outcomes)
    assert all(o.fix for o in outcomes if o.status == "failed" and name != "raises")


@pytest.mark.parametrize("name", ["sound", "noisy", "squeezed", "no-gradient-at-all", "refuses", "untrained", "wrapper"])
def test_sound_defenses_pass(name: str) -> None:
    outcomes = check(name)
    assert not failures(outcomes)
    assert sum(o.status == "passed" for o in outcomes) >= 15


def test_every_check_is_shown_to_find_something() -> None:
    assert set().union(*BROKEN.values()) | EVERYWHERE == {check.name for check in DEFENSE_SUITE.checks}


def test_module_and_images_are_on_the_device_that_is_asked_for() -> None:
    subject = DefenseSubject(registry(), "broken-defenses/sound", "broken-defenses/greys", device="meta")
    assert {t.device.type for t in (subject.x, *subject.module.state_dict().values())} == {"meta"}
    assert subject.module(subject.x).device.type == "meta"


@pytest.mark.parametrize("name", ["untrained", "wrapper"])
def test_without_weights_it_is_checked_untrained_and_told_how_to_train(name: str) -> None:
    skipped = {o.check: o for o in check(name) if o.status == "skipped"}
    assert skipped["weights-found"].reason == "no weights for greys: checked untrained"
    assert "rbl train untrained --dataset greys" in skipped["weights-found"].fix


def test_without_any_data_set_made_up_images_do() -> None:
    outcomes = check_defense(registry(), "broken-defenses/refuses")
    shape = next(o for o in outcomes if o.check == "logits-shape")
    assert shape.status == "failed"  # four grey levels, and ten made-up classes
    assert "returned (16, 5)" in shape.reason
    chance = next(o for o in outcomes if o.check == "better-than-chance")
    assert chance.reason == "there are no real images to tell by"

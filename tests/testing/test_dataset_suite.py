"""Every check finds the data set that is broken in its way, and nothing else is wrong with that data set."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from robustbench_lite.registry import Registry, load
from robustbench_lite.testing import DATASET_SUITE, check_dataset
from tests.support import BROKEN_PLUGINS, failures

BROKEN = {
    "no-hint": {"missing-data-says-how"},
    "opens-files": {"missing-data-says-how"},
    "not-a-bundle": {"loads"},
    "one-class-name": {"info-is-sound"},
    "bad-std": {"info-is-sound"},
    "bytes255": {"images"},
    "twice-scaled": {"images"},
    "wrong-shape": {"images"},
    "label-tensor": {"labels"},
    "labels-from-one": {"labels"},
    "missing-class": {"labels"},
    "out-of-range": {"evaluation-subset"},
    "repeats": {"evaluation-subset"},
    "augments": {"same-example-again", "same-data-again"},
    "batch-differs": {"same-example-again"},
    "other-order": {"same-data-again"},
    "no-fingerprint": {"same-data-again"},
    "leaks": {"splits-are-disjoint"},
}
EVERYWHERE = {"plugin-problems", "spec-is-complete", "light-import", "parameters-are-valid"}


@cache
def registry() -> Registry:
    return load([BROKEN_PLUGINS / "broken_others.py"], entry_points=False)


@pytest.mark.parametrize("name", BROKEN)
def test_finds_exactly_what_is_broken(name: str, tmp_path: Path) -> None:
    (tmp_path / "images.bin").touch()
    outcomes = check_dataset(registry(), name, tmp_path)
    assert failures(outcomes).keys() == BROKEN[name], failures(outcomes)
    assert all(o.fix for o in outcomes if o.status == "failed")


def test_a_sound_data_set_passes_every_check(tmp_path: Path) -> None:
    outcomes = check_dataset(registry(), "sound", tmp_path)
    assert {o.status for o in outcomes} == {"passed"}


def test_every_check_is_shown_to_find_something() -> None:
    assert set().union(*BROKEN.values()) | EVERYWHERE == {check.name for check in DATASET_SUITE.checks}


def test_absent_data_are_skipped_with_the_reason_and_the_hint(tmp_path: Path) -> None:
    outcomes = {o.check: o for o in check_dataset(registry(), "absent", tmp_path)}
    assert not failures(list(outcomes.values()))
    assert outcomes["missing-data-says-how"].status == "passed"
    assert (outcomes["loads"].status, outcomes["loads"].fix) == ("skipped", "fetch it")
    assert outcomes["images"].reason == "its data are not here: see the check `loads`"

"""What is kept of checks that look at a model, and what is made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_lite.diagnostics.catalogue import find_checks
from robustbench_lite.diagnostics.record import Record, question
from robustbench_lite.errors import StoreError
from robustbench_lite.store import Store
from robustbench_lite.threat import Threat
from robustbench_lite.verdict import Verdict

SPEC = {"protocol": {"name": "quick"}, "dataset": {"id": "toy/blobs"}, "defense": {"id": "toy/mean"}, "seed": 0}
THREAT = Threat.parse("linf:0.1")
CHECKS = find_checks(["D6", "D7", "D11"])
PASSED = Verdict(check="zero-gradients", outcome="pass", evidence="none of 9", value=0.0, threshold=0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def record(store: Store) -> Record:
    return Record(store, question(SPEC, "cheap", THREAT))


def names(found: Record) -> list[str]:
    return [check.name for check in found.missing(CHECKS)]


def test_a_verdict_that_is_stored_is_not_missing_and_reads_back(store: Store) -> None:
    assert record(store).verdicts() == []
    record(store).write(PASSED)
    assert record(store).verdicts() == [PASSED]
    assert names(record(store)) == ["gradient-shattering", "finite-differences"]
    assert store.check() == []


def test_a_check_that_takes_its_process_along_comes_last_and_is_given_up(store: Store) -> None:
    zero, *_ = CHECKS
    record(store).begin(zero)
    assert names(record(store)) == ["gradient-shattering", "finite-differences", "zero-gradients"]
    record(store).begin(zero)
    assert names(record(store)) == ["gradient-shattering", "finite-differences"]
    (given_up,) = record(store).verdicts()
    assert (given_up.outcome, given_up.evidence) == ("not-applicable", "its process was ended 2 times while it was made")
    record(store).write(PASSED)  # a run that was further than that one
    assert record(store).verdicts() == [PASSED]


def test_cheap_checks_do_not_depend_on_the_threat_model_and_expensive_ones_do(store: Store) -> None:
    wider = Threat.parse("linf:0.2")
    assert question(SPEC, "cheap", THREAT) == question(SPEC, "cheap", wider)
    assert question(SPEC, "expensive", THREAT) != question(SPEC, "expensive", wider)
    assert question(SPEC, "cheap", THREAT) != question(SPEC, "cheap", THREAT, examples=5)


def test_a_store_that_is_only_read_is_not_written_to(store: Store) -> None:
    record(store).write(PASSED)
    reader = Store.open(store.path, read_only=True)
    assert record(reader).verdicts() == [PASSED]
    with pytest.raises(StoreError):
        record(reader).begin(CHECKS[1])

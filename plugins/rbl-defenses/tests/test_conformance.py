"""The conformance suite on every defense of this distribution, and on wrappers of wrappers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from zoo import UNTRAINED, ZOO

from robustbench_lite.registry import Registry, load
from robustbench_lite.selectors import parse_selector
from robustbench_lite.testing import DefenseConformance, check_defense


@pytest.fixture(scope="module", autouse=True)
def _shipped_weights_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RBL_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


class TestStandard(DefenseConformance):
    """One test per check, as plugins do it. Below, one per defense: tests by the thousand take longer than their checks."""

    defense = "rbl/standard"


@pytest.mark.parametrize("selector", ZOO)
def test_it_conforms(selector: str, registry: Registry) -> None:
    outcomes = {outcome.check: outcome for outcome in check_defense(registry, f"rbl/{selector}")}
    failed = [f"{o.check}: {o.reason}\n  fix: {o.fix}" for o in outcomes.values() if o.status == "failed"]
    assert not failed, "\n".join(failed)
    assert (outcomes["weights-found"].status == "skipped") == (selector in UNTRAINED)
    assert outcomes["gradient"].status == outcomes["batch-does-not-matter"].status == "passed"


def test_every_defense_is_tested(registry: Registry) -> None:
    brought = {entry.id for entry in registry.entries("defense") if entry.distribution == "rbl-defenses"}
    assert brought == {f"rbl/{parse_selector(selector).name}" for selector in ZOO}

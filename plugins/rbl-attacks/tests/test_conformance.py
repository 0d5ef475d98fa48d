"""The conformance suite on every attack of this distribution."""

from __future__ import annotations

import re

from battery import BATTERY

from robustbench_lite.registry import load
from robustbench_lite.selectors import parse_selector
from robustbench_lite.testing import AttackConformance


def conformance(device: str) -> dict[str, type]:
    """A class of tests for every row of the battery, by their names."""
    names = {selector: "Test_" + re.sub(r"\W+", "_", selector).strip("_") for selector in BATTERY}
    return {
        name: type(name, (AttackConformance,), {"attack": f"rbl/{selector}", "device": device, "__module__": __name__})
        for selector, name in names.items()
    }


globals().update(conformance("cpu"))


def test_every_attack_is_tested() -> None:
    brought = {entry.id for entry in load().entries("attack") if entry.distribution == "rbl-attacks"}
    assert brought == {f"rbl/{parse_selector(selector).name}" for selector in BATTERY}

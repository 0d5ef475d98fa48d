"""The conformance suite on every attack of this distribution."""

from __future__ import annotations

import re

from battery import BATTERY

from robustbench_lite.registry import load
from robustbench_lite.selectors import parse_selector
from robustbench_lite.testing import AttackConformance

for _selector in BATTERY:
    _name = "Test_" + re.sub(r"\W+", "_", _selector).strip("_")
    globals()[_name] = type(_name, (AttackConformance,), {"attack": f"rbl/{_selector}", "__module__": __name__})


def test_every_attack_is_tested() -> None:
    brought = {entry.id for entry in load().entries("attack") if entry.distribution == "rbl-attacks"}
    assert brought == {f"rbl/{parse_selector(selector).name}" for selector in BATTERY}

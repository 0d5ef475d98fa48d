"""The pytest classes: one test for every check, named after it, with the same outcome."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_lite import testing
from tests.support import environment

PLUGIN = Path(__file__).parent / "plugins" / "broken_attacks.py"

TESTS = f"""
from pathlib import Path
from robustbench_lite.testing import AttackConformance

class TestWeak(AttackConformance):
    plugins = [Path({str(PLUGIN)!r})]
    attack = "broken-attacks/weak"

class TestRandom(AttackConformance):
    plugins = [Path({str(PLUGIN)!r})]
    attack = "broken-attacks/globallyrandom"

    def test_one_example(self):
        import pytest

        pytest.skip("for a reason of my own")
"""


@pytest.mark.parametrize("kind", ["attack", "defense", "dataset", "metric"])
def test_a_class_has_a_test_for_every_check_of_its_kind(kind: str) -> None:
    suite = getattr(testing, f"{kind.upper()}_SUITE")
    cls = getattr(testing, f"{kind.capitalize()}Conformance")
    tests = [name for name in vars(cls) if name.startswith("test_")]
    assert tests == [f"test_{check.name.replace('-', '_')}" for check in suite.checks]
    assert all(check.proves and "\n" not in check.proves for check in suite.checks)
    assert len({check.name for check in suite.checks}) == len(suite.checks)


def test_failures_name_the_check_and_skips_say_why(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rsf", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout
    assert "TestWeak::test_beats_a_linear_model - Failed: linf:" in done.stdout
    assert "fix: check the sign of the loss" in done.stdout
    assert "its spec declares global_rng" in done.stdout
    assert "for a reason of my own" in done.stdout
    assert "Traceback" not in done.stdout

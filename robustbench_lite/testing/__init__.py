"""What plugin authors test with: toy targets, and conformance suites that say what a plugin must keep."""

from __future__ import annotations

from robustbench_lite.testing.toys import CoinFlip, Constant, Linear, Masked, NotANumber, make_target

__all__ = ["CoinFlip", "Constant", "Linear", "Masked", "NotANumber", "make_target"]

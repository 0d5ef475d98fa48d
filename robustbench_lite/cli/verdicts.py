"""Verdicts of checks as a table, for ``rbl diagnose`` and ``rbl show``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from robustbench_lite.cli.app import print_table

if TYPE_CHECKING:
    from robustbench_lite.verdict import Verdict


def print_verdicts(verdicts: Sequence[Verdict], empty: str) -> None:
    """A row per verdict, and below what to try where something is wrong. empty: what to say where there is none."""
    from robustbench_lite.diagnostics.catalogue import CHECKS

    codes = {check.name: check.code for check in CHECKS}
    rows = [(codes.get(v.check, ""), v.check, v.outcome, v.evidence) for v in verdicts]
    print_table(rows, ("code", "check", "outcome", "evidence"), empty)
    if advice := [(codes.get(v.check, ""), v.check, v.advice) for v in verdicts if v.advice]:
        click.echo()
        print_table(advice, ("code", "check", "what to try"), "")

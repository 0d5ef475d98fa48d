"""``rbl plan``: what a run would do, cell by cell, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from robustbench_lite.cli.app import App, counted, json_option, print_json, print_table
from robustbench_lite.cli.run import read_request, request_options, wants_expensive

if TYPE_CHECKING:
    from robustbench_lite.diagnostics.plan import PlannedChecks
    from robustbench_lite.plan import Plan
    from robustbench_lite.request import RunRequest


@click.command("plan")
@request_options
@json_option
@click.pass_obj
def command(app: App, /, as_json: bool, **options: Any) -> None:
    """Say what a run would do, cell by cell, and why. Nothing is run and nothing is written."""
    request = read_request(app, options)

    show_plan(app, request, as_json)


def show_plan(app: App, request: RunRequest, as_json: bool) -> None:
    """Plan a request with what its store holds, and print the plan."""
    from robustbench_lite.diagnostics.plan import plan_checks
    from robustbench_lite.planner import make_plan
    from robustbench_lite.store import Store

    empty = not request.store.exists() or (request.store.is_dir() and not any(request.store.iterdir()))
    store = None if empty else Store.open(request.store, create=False, read_only=True)
    plan = make_plan(request, app.registry(), store)
    print_plan(plan, plan_checks(plan.cells, store, expensive=wants_expensive(request, plan)), as_json)


def print_plan(plan: Plan, checks: Sequence[PlannedChecks], as_json: bool) -> None:
    """A row per cell, and how many there are of each state; then the checks that are still to be made."""
    unchecked = [each for each in checks if each.checks]
    if as_json:
        planned = [{"label": each.label, "key": each.key, "checks": list(each.checks)} for each in unchecked]
        print_json({"cells": [cell.to_json() for cell in plan.cells], "counts": plan.counts(), "checks": planned})
        return
    rows = [
        (
            c.state,
            c.dataset,
            c.threat,
            c.defense,
            c.attack or f"metric {c.metric}",
            c.n,
            f"{c.cost:,}" if c.cost else "?",
            c.reason,
        )
        for c in plan.cells
    ]
    headers = ("state", "data set", "threat", "defense", "attack", "n", "passes/example", "reason")
    print_table(rows, headers, "nothing to do")
    counts = ", ".join(f"{n} {state}" for state, n in sorted(plan.counts().items()))
    click.echo(f"\n{counted(len(plan.cells), 'cell')}{': ' * bool(counts)}{counts}")
    models: dict[tuple[str, ...], list[str]] = {}
    for each in unchecked:
        models.setdefault(each.checks, []).append(each.model)
    for names, labels in models.items():
        click.echo(f"checks of {', '.join(labels)}: {', '.join(names)}")

"""``rbl status``: what a store holds."""

from __future__ import annotations

from pathlib import Path

import click

from robustbench_lite.cli.app import App, counted, json_option, open_store, print_json, print_table, store_option


@click.command("status")
@store_option
@json_option
@click.pass_obj
def command(app: App, store: Path | None, as_json: bool) -> None:
    """Say what a store holds, what failed and why, who is at work, and which files do not belong."""
    from robustbench_lite.lease import holder
    from robustbench_lite.plan import shards_of

    opened = open_store(store)
    cells = []
    for cell in (*opened.cells(), *opened.measurements()):
        spec = cell.spec
        shards = shards_of(spec)
        state = cell.state(shards, verify=True)
        at_work = holder(cell.folder) if state.status != "done" else None
        cells.append(
            {
                "key": cell.key,
                "status": "running" if at_work else state.status,
                "dataset": spec["dataset"]["label"],
                "threat": spec["threat"] or "",
                "protocol": f"{spec['protocol']['name']}@{spec['protocol']['version']}",
                "defense": spec["defense"]["label"],
                "attack": spec["attack"]["label"] if "attack" in spec else "",
                "metric": spec["metric"]["label"] if "metric" in spec else "",
                "shards": f"{len(state.shards)}/{shards}",
                "attempts": state.attempts,
                "reason": at_work or state.reason,
            }
        )
    strays = opened.check()
    if as_json:
        print_json({"store": str(opened.path), "cells": cells, "strays": strays})
        return
    open_cells = [c for c in cells if c["status"] != "done"]
    shown = ("status", "dataset", "threat", "protocol", "defense", "attack", "metric", "shards", "attempts", "reason")
    rows = [[str(c[name]).splitlines()[0] if c[name] else "" for name in shown] for c in open_cells]
    print_table(rows, shown, "every stored cell is done" if cells else "no cells yet")
    click.echo(f"\n{opened.path}: {counted(len(cells), 'cell')}, {len(cells) - len(open_cells)} done")
    for stray in strays:
        click.echo(stray)

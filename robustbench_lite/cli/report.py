"""``rbl report``: leaderboards from stored results, without a model or a GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lite.cli.app import App, is_terminal, json_option, open_store, print_json, store_option, warn
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.leaderboard import Leaderboard
    from robustbench_lite.planner import Plan
    from robustbench_lite.registry import Registry
    from robustbench_lite.store import Store


@click.command("report")
@store_option
@click.option("--dataset", help="Only tables of the data set of this name.")
@click.option("--threat", "threats", multiple=True, help="Only tables of these threat models.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write .md, .csv and .json to this folder.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "terminal", "markdown", "csv"]),
    default="auto",
    help="What to print: a terminal table, Markdown or CSV [terminal on a terminal, else Markdown].",
)
@json_option
@click.pass_obj
def command(
    app: App, store: Path | None, dataset: str | None, threats: tuple[str, ...], out: Path | None, form: str, as_json: bool
) -> int:
    """Render leaderboards: one per data set, threat model and protocol version."""
    wanted = [Threat.parse(text) for text in threats]
    opened = open_store(store)
    tables = make_tables(opened, app.registry(), extra=wanted)
    tables = [t for t in tables if dataset in (None, t.dataset) and (not wanted or t.threat in wanted)]
    if as_json:
        from robustbench_lite.leaderboard.json_table import to_json

        print_json([to_json(table) for table in tables])
    else:
        print_tables(tables, form)
    if out is not None:
        for path in write_tables(tables, out):
            warn(f"wrote {path}")
    if not tables:
        warn("no results to show: rbl status says what the store holds")
    return 0 if tables else 1


def make_tables(
    store: Store,
    registry: Registry,
    keys: Collection[str] | None = None,
    plan: Plan | None = None,
    extra: Sequence[Threat] = (),
) -> list[Leaderboard]:
    """The leaderboards of a store. keys: the cells to take, all where None. extra: radii for minimal-norm cells."""
    from robustbench_lite.leaderboard import build_tables, metric_from, reference_from
    from robustbench_lite.store import cell_key

    def wanted(spec: Mapping[str, Any]) -> bool:
        return keys is None or cell_key(spec) in keys

    tables = build_tables(
        store.results(wanted),
        metric=metric_from(registry),
        reference=reference_from(registry),
        not_applicable=_not_applicable([cell.spec for cell in store.cells() if wanted(cell.spec)]),
        threats=[*extra, *({Threat.parse(cell.threat) for cell in plan.cells} if plan else ())],
        note=warn,
    )
    for message in store.messages:
        warn(message)
    return tables


def print_tables(tables: Sequence[Leaderboard], form: str = "auto") -> None:
    """Print tables as for a terminal, as Markdown or as CSV."""
    if form == "terminal" or (form == "auto" and is_terminal()):
        from rich.console import Console

        from robustbench_lite.leaderboard import terminal

        for table in tables:
            Console().print(terminal.render(table))
        return
    from robustbench_lite.leaderboard import csv_table, markdown

    for table in tables:
        click.echo(csv_table.render(table) if form == "csv" else markdown.render(table), nl=False)


def write_tables(tables: Sequence[Leaderboard], folder: Path, made_by: str = "rbl report") -> list[Path]:
    """Write tables as Markdown, CSV and JSON; made_by: the command that makes them again, shown in the Markdown."""
    from robustbench_lite.leaderboard import write_all

    return write_all(tables, folder, command=made_by)


def _not_applicable(specs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """(defense label, attack label) -> reason, for every pair of the given cells that cannot be run."""
    from robustbench_lite.planner import inapplicable

    defenses = {spec["defense"]["label"]: spec["defense"] for spec in specs}
    attacks = {spec["attack"]["label"]: spec["attack"] for spec in specs}
    pairs = ((d, a, inapplicable(defense, attack)) for d, defense in defenses.items() for a, attack in attacks.items())
    return {(d, a): reason for d, a, reason in pairs if reason}

"""``rbl report``: leaderboards from stored results, without a model or a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lite.cli.app import App, is_terminal, json_option, open_store, print_json, print_table, store_option, warn
from robustbench_lite.errors import InvalidParameter, PluginError, UsageError, did_you_mean
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.cell import Cell
    from robustbench_lite.leaderboard import Leaderboard
    from robustbench_lite.leaderboard.measures import MeasureTable
    from robustbench_lite.leaderboard.tables import Stale
    from robustbench_lite.registry import Registry
    from robustbench_lite.resolve import ResolvedMetric
    from robustbench_lite.store import Store

# From how many results on a report starts other processes.
MANY_RESULTS = 500


@click.command("report")
@store_option
@click.option("--dataset", help="Only tables of the data set of this name.")
@click.option("--metric", "metrics", multiple=True, help="Further metrics of stored results, or 'all': auac, nll [none].")
@click.option("--threat", "threats", multiple=True, help="Only tables of these threat models.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write .md, .csv and .json to this folder.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write one HTML file with tables and charts, for a browser."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "terminal", "markdown", "csv"]),
    default="auto",
    help="What to print: a terminal table, Markdown or CSV [terminal on a terminal, else Markdown].",
)
@click.option(
    "--hide-outdated", is_flag=True, help="Leave out results of other plugin versions, parameters or weights than are used now."
)
@click.option(
    "--rank-self-reported", is_flag=True, help="Rank imported results that nobody has verified like those that were run here."
)
@json_option
@click.option("--schema", is_flag=True, help="Print the JSON Schema of --json and of the .json files, and stop.")
@click.pass_obj
def command(
    app: App,
    store: Path | None,
    dataset: str | None,
    metrics: tuple[str, ...],
    threats: tuple[str, ...],
    out: Path | None,
    html: Path | None,
    form: str,
    hide_outdated: bool,
    rank_self_reported: bool,
    as_json: bool,
    schema: bool,
) -> int:
    """Render leaderboards: one per data set, threat model and protocol version.

    Beside each stand what `rbl run --metric` measured on its models, and the metrics that --metric asks for.
    """
    if schema:
        from robustbench_lite.leaderboard import json_table

        print_json(json_table.schema())
        return 0
    wanted = [Threat.parse(text) for text in threats]
    opened = open_store(store)
    cells = list(opened.cells())
    stale = _outdated(app, [cell.spec for cell in (*cells, *opened.measurements())])
    if hide_outdated:
        cells = [cell for cell in cells if not stale(cell.spec)]
    asked = asked_metrics(metrics, app.registry())
    found = make_tables(opened, cells, app.registry(), wanted, stale, rank_self_reported=rank_self_reported)
    tables = [t for t in found if dataset in (None, t.dataset) and (not wanted or t.threat in wanted)]
    tables, others = add_measures(tables, opened, app.registry(), lambda spec: not stale(spec), asked)
    others = [t for t in others if dataset in (None, t.dataset) and not wanted]
    if found and not tables and not others:
        raise UsageError(f"no results in {opened.path} {_filter(dataset, threats)}", hint=_nearest(found, dataset))
    if as_json:
        from robustbench_lite.leaderboard.json_table import measures_to_json, to_json

        print_json([to_json(table) for table in tables] + [measures_to_json(table) for table in others])
    elif form != "auto" or html is None:
        print_tables(tables, form, app.command_line)
        print_measures(others)
    if out is not None:
        for path in write_tables(tables, out, app):
            warn(f"wrote {path}")
    if html is not None:
        write_page(tables, cells, html, app, others)
        warn(f"wrote {html}")
    _name_those_beside_none(opened, found)
    if not tables and not others:
        warn("no results to show: rbl status says what the store holds")
    return 0 if tables or others else 1


def _name_those_beside_none(store: Store, tables: Sequence[Leaderboard]) -> None:
    """Say which published entries are shown nowhere, for want of a table of one's own."""
    from robustbench_lite.published import stored_entries

    shown = [entry for table in tables for entry in table.published]
    apart = Counter(f"{entry.dataset} {entry.threat}" for entry in stored_entries(store) if entry not in shown)
    if apart:
        listed = ", ".join(f"{name} ({number})" for name, number in sorted(apart.items()))
        warn(f"published entries that stand beside no table: {listed}")


def _filter(dataset: str | None, threats: Sequence[str]) -> str:
    said = [f"on data set {dataset!r}"] * (dataset is not None) + [f"under {', '.join(threats)}"] * bool(threats)
    return " ".join(said)


def _nearest(found: Sequence[Leaderboard], dataset: str | None) -> str:
    names = sorted({table.dataset for table in found})
    if dataset is not None and dataset not in names:
        return did_you_mean(dataset, names) or f"there are results on {', '.join(names)}"
    titles = sorted({table.title for table in found if dataset in (None, table.dataset)})
    return f"there are results of {'; '.join(titles)}"


def _outdated(app: App, specs: Sequence[Mapping[str, Any]]) -> Stale:
    """What of a result is out of date, and why. Says how many are, and why."""
    from robustbench_lite.outdated import Outdated

    outdated = Outdated(specs, app.registry(), app.data)
    for reason, number in sorted(Counter(why for spec in specs if (why := outdated.why(spec))).items()):
        stored = f"{number} stored results are" if number > 1 else "1 stored result is"
        warn(f"{stored} out of date and not ranked: {reason} (rbl run computes anew)")
    return outdated.parts


def make_tables(
    store: Store,
    cells: Sequence[Cell],
    registry: Registry,
    extra: Iterable[Threat] = (),
    stale: Stale = lambda spec: {},
    *,
    rank_self_reported: bool = False,
) -> list[Leaderboard]:
    """The leaderboards of some cells of a store. extra: radii for minimal-norm cells. stale: why one is out of date.

    Beside each stand the published entries of its data set and threat model.
    """
    from robustbench_lite.diagnostics.record import stored_verdicts
    from robustbench_lite.leaderboard import about_from, build_tables, metric_from
    from robustbench_lite.published import stored_entries

    by_key = {cell.key: cell for cell in cells}
    tables = build_tables(
        cells,
        metric=metric_from(registry),
        about=about_from(registry),
        naive=_naive_from(registry),
        not_applicable=_not_applicable([cell.spec for cell in cells]),
        verdicts=partial(stored_verdicts, store),
        threats=extra,
        stale=stale,
        origin=lambda key: by_key[key].origin,
        rank_self_reported=rank_self_reported,
        note=warn,
        each=_each(store, len(cells)),
    )
    for message in store.messages:
        warn(message)
    known = stored_entries(store)
    return [replace(t, published=tuple(e for e in known if e.beside(t.dataset, t.threat))) for t in tables]


def _each(store: Store, results: int) -> Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]:
    """``map``; of a large store in a process for each core, which tell this one what damage they find."""
    from robustbench_lite.processes import can_fork, cores, forked_map

    count = cores()
    if results < MANY_RESULTS or count == 1 or not can_fork():
        return map

    def each(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        def told(item: Any) -> tuple[Any, list[str]]:
            before = len(store.messages)
            return work(item), store.messages[before:]

        for result, messages in forked_map(told, items, count):
            store.messages += [message for message in messages if message not in store.messages]
            yield result

    return each


def _naive_from(registry: Registry) -> Callable[[str, int], Sequence[str]]:
    """The ids of the attacks that a protocol calls naive, by its name and version; none of one that is not known any more."""
    from robustbench_lite.protocol import contributed_protocols, known_protocols

    known = {(p.name, p.version): p.naive for p in known_protocols(contributed_protocols(registry)).values()}
    return lambda protocol, version: known.get((protocol, version), ())


def asked_metrics(selectors: Sequence[str], registry: Registry) -> list[ResolvedMetric]:
    """The metrics of scope ``cell`` and ``defense`` that are asked for; of ``all`` those that can do without parameters.

    Raises UsageError for one of scope ``model``, which rbl run measures.
    """
    from robustbench_lite.resolve import resolve_metric
    from robustbench_lite.selectors import split_selectors

    found: dict[str, ResolvedMetric] = {}
    for text in [name for item in selectors for name in split_selectors(item)]:
        if text == "all":
            for entry in registry.entries("metric"):
                with suppress(InvalidParameter, PluginError):
                    metric = resolve_metric(registry, entry.id)
                    found |= {metric.label: metric} if metric.declared.scope != "model" else {}
            continue
        metric = resolve_metric(registry, text)
        if metric.declared.scope == "model":
            raise UsageError(
                f"{metric.label} is measured on the model: what was measured is shown in any case",
                hint=f"rbl run --metric {metric.label}",
            )
        found[metric.label] = metric
    return list(found.values())


def add_measures(
    tables: Sequence[Leaderboard],
    store: Store,
    registry: Registry,
    wanted: Callable[[Mapping[str, Any]], bool],
    asked: Sequence[ResolvedMetric] = (),
) -> tuple[list[Leaderboard], list[MeasureTable]]:
    """The tables with what was measured on their models and the metrics ``asked``; and the measures that have no table."""
    from robustbench_lite.leaderboard.measures import apart, beside, computed, measured
    from robustbench_lite.provenance import REFUTED, status_of
    from robustbench_lite.resolve import metric_from_spec

    stored = [each for each in store.measurements() if wanted(each.spec)]
    known = measured(stored, lambda spec: metric_from_spec(registry, spec))
    cells = [cell for cell in store.cells() if wanted(cell.spec) and status_of(cell.origin) != REFUTED] if asked else []
    full = [replace(t, measures=(*beside(t, known), *computed(t, cells, asked))) for t in tables]
    return full, apart(tables, known)


def print_measures(tables: Sequence[MeasureTable]) -> None:
    """Print measures that no leaderboard stands beside."""
    from robustbench_lite.leaderboard.layout import Footnotes, measure_grids
    from robustbench_lite.leaderboard.text import plain

    for table in tables:
        notes = Footnotes()
        click.echo(f"\n{table.title}: metrics of models")
        for grid in measure_grids(table.measures, plain, notes):
            print_table(grid.rows, grid.header, "")
        for number, text in enumerate(notes.texts, 1):
            click.echo(f"{number}. {text}")


def print_tables(tables: Sequence[Leaderboard], form: str, command: str) -> None:
    """Print tables as for a terminal, as Markdown (which names the command that makes it) or as CSV."""
    if form == "terminal" or (form == "auto" and is_terminal()):
        from rich.console import Console

        from robustbench_lite.leaderboard import terminal

        for table in tables:
            Console().print(terminal.render(table))
        return
    from robustbench_lite.leaderboard import csv_table, markdown

    for table in tables:
        click.echo(csv_table.render(table) if form == "csv" else markdown.render(table, command=command), nl=False)


def write_tables(tables: Sequence[Leaderboard], folder: Path, app: App) -> list[Path]:
    """Write tables as Markdown, which names the command that makes them again, CSV and JSON."""
    from robustbench_lite.leaderboard import write_all
    from robustbench_lite.protocol import contributed_protocols, known_protocols

    known = known_protocols(contributed_protocols(app.registry()))

    def radii(protocol: str, dataset: str) -> Sequence[str]:
        return known[protocol].rules(dataset).threats if protocol in known else ()

    return write_all(tables, folder, command=app.command_line, radii=radii)


def write_page(
    tables: Sequence[Leaderboard], cells: Iterable[Cell], path: Path, app: App, others: Sequence[MeasureTable] = ()
) -> None:
    """Write tables as one HTML file, with a few of the images that the cells hold. others: measures that have no table."""
    from robustbench_lite.leaderboard import html
    from robustbench_lite.leaderboard.gallery import pick
    from robustbench_lite.lease import make_folder, write_file

    by_key = {cell.key: cell for cell in cells}
    examples = {i: pick(table, by_key) for i, table in enumerate(tables)}
    make_folder(path.absolute().parent)
    write_file(path, html.render(tables, command=app.command_line, examples=examples, others=others).encode("utf-8"))


def _not_applicable(specs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """(defense label, attack label) -> reason, for every pair of the given cells that cannot be run."""
    from robustbench_lite.applicable import inapplicable

    defenses = {spec["defense"]["label"]: spec["defense"] for spec in specs}
    attacks = {spec["attack"]["label"]: spec["attack"] for spec in specs}
    pairs = ((d, a, inapplicable(defense, attack)) for d, defense in defenses.items() for a, attack in attacks.items())
    return {(d, a): reason for d, a, reason in pairs if reason}

"""``rbl export``: results in one file, to hand to others."""

from __future__ import annotations

from pathlib import Path

import click

from robustbench_lite.cli.app import App, counted, open_store, store_option, warn
from robustbench_lite.errors import UsageError


@click.command("export")
@click.argument("bundle", type=click.Path(path_type=Path, dir_okay=False))
@store_option
@click.option("--defense", "defenses", multiple=True, help="Only results of this defense, or of all of that name.")
@click.option("--attack", "attacks", multiple=True, help="Only results of this attack, or of all of that name.")
@click.option("--dataset", help="Only results on the data set of this name.")
@click.option("--threat", "threats", multiple=True, help="Only results that say something of these threat models.")
@click.option("--examples/--no-examples", default=True, help="With the images that rbl run --keep-examples stored [with].")
@click.option("--by", default="", help="Whose results these are.")
@click.option("--where", default="", help="Where more is told about them: a URL.")
@click.pass_obj
def command(
    app: App,
    bundle: Path,
    store: Path | None,
    defenses: tuple[str, ...],
    attacks: tuple[str, ...],
    dataset: str | None,
    threats: tuple[str, ...],
    examples: bool,
    by: str,
    where: str,
) -> None:
    """Write the results that are whole to BUNDLE: what was asked, arrays, versions, checksums of the models, and images.

    Others take it in by `rbl import` and check it by `rbl verify`. Names of machines stay here, and so do results that were
    imported, and measurements of models.
    """
    from robustbench_lite.bundle import export_cells
    from robustbench_lite.threat import Threat

    wanted = [Threat.parse(text) for text in threats]
    opened = open_store(store)
    chosen = [
        cell
        for cell in opened.cells()
        if (not defenses or _is_one_of(cell.spec["defense"]["label"], defenses))
        and (not attacks or _is_one_of(cell.spec["attack"]["label"], attacks))
        and dataset in (None, cell.spec["dataset"]["name"])
        and (not wanted or any(Threat.parse(cell.spec["threat"]).answers(threat) for threat in wanted))
    ]
    imported = [cell for cell in chosen if cell.origin is not None]
    whole = [cell for cell in chosen if cell not in imported and cell.load_what_is_whole().status == "done"]
    for number, why in ((len(imported), "imported"), (len(chosen) - len(imported) - len(whole), "not whole")):
        if number:
            warn(f"{counted(number, 'result')} left out: {why}")
    if not whole:
        raise UsageError(f"no whole results in {opened.path} to export", hint="rbl status says what the store holds")
    manifest = export_cells(whole, bundle, examples=examples, by=by, where=where)
    shown = sum(bool(summary.examples) for summary in manifest.cells.values())
    images = f", {shown} of them with adversarial examples" if shown else ", without adversarial examples"
    click.echo(f"{bundle}: {counted(len(whole), 'result')}{images}, {bundle.stat().st_size:,} bytes")


def _is_one_of(label: str, asked: tuple[str, ...]) -> bool:
    """Whether a label, or its name without parameters, was asked for."""
    return label in asked or label.partition("[")[0] in asked

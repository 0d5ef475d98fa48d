"""``rbl compare``: two defenses, or two attacks, on the same examples."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustbench_lite.cli.app import App, json_option, open_store, print_json, store_option, warn
from robustbench_lite.errors import UnknownName

if TYPE_CHECKING:
    from robustbench_lite.leaderboard.comparison import Comparison, Side

LISTED = 20  # indices of examples that are printed; --json has all


@click.command("compare")
@click.argument("a")
@click.argument("b")
@click.option("--kind", type=click.Choice(["defense", "attack"]), help="Where the names are those of defenses and attacks.")
@store_option
@click.option("--dataset", help="Only on the data set of this name.")
@click.option("--threat", "threats", multiple=True, help="Only under these threat models.")
@json_option
@click.pass_obj
def command(
    app: App, a: str, b: str, kind: str | None, store: Path | None, dataset: str | None, threats: tuple[str, ...], as_json: bool
) -> None:
    """Compare two defenses A and B, or two attacks, by their stored results on the same examples.

    Says how far apart they are, how sure that is, on which examples they differ, and what made the difference. A and B are
    labels as tables show them: pgd-at, 'jpeg[quality=50]', 'apgd-ce[steps=100]'; or names, where only one label has it.
    """
    from robustbench_lite.leaderboard.comparison import compare
    from robustbench_lite.outdated import Outdated
    from robustbench_lite.provenance import REFUTED, status_of
    from robustbench_lite.threat import Threat

    wanted = [Threat.parse(text) for text in threats]
    cells = [cell for cell in open_store(store).cells() if status_of(cell.origin) != REFUTED]
    outdated = Outdated([cell.spec for cell in cells], app.registry(), app.data)
    current = [cell for cell in cells if not outdated.parts(cell.spec)]

    def asked(name: str, threat: Threat) -> bool:
        return dataset in (None, name) and (not wanted or threat in wanted)

    try:
        found = compare(current, a, b, kind=kind, wanted=asked, note=warn)
    except UnknownName:  # what is out of date can be compared, too
        found = compare(cells, a, b, kind=kind, wanted=asked, note=warn)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    for i, each in enumerate(found):
        click.echo("\n" * bool(i) + "\n".join(_lines(each)))


def _lines(found: Comparison) -> list[str]:
    from robustbench_lite.leaderboard.text import count, percent

    a, b = found.a, found.b
    where = f"{found.dataset}, {found.threat}, {found.protocol}, seed {found.seed}, n = {found.n}"
    met = f"under {len(found.against)} attacks" if found.kind == "defense" and len(found.against) > 1 else (
        f"under {found.against[0]}" if found.kind == "defense" else f"on {found.against[0]}"
    )  # fmt: skip
    lines = [f"{a.label} and {b.label} {met} ({where})", ""]
    rows = [
        [
            side.label,
            percent(side.clean),
            percent(side.robust),
            count(side.passes),
            *([_size(side)] * (side.median is not None)),
        ]
        for side in (a, b)
    ]
    header = ["", "clean", "robust", "passes", *["median size"] * any(side.median is not None for side in (a, b))]
    lines += _table(rows, header)
    gap = found.difference
    low, high = (0.0 if x is None else 100 * x for x in (gap.low, gap.high))
    lines += [
        "",
        f"difference   {100 * gap.value:+.1f} points [{low:+.1f}, {high:+.1f}]; McNemar p = {found.p:.3g}: {_verdict(found)}",
    ]
    on, only = ("with", "only with {0}") if found.kind == "defense" else ("under", "only {1} beats")
    lines += [f"examples     robust {on} both {found.both}, {on} neither {found.neither}"]
    for side, other in ((a, b), (b, a)):
        lines += [f"             {only.format(side.label, other.label)} {len(side.only)}{_indices(side)}"]
    if found.p_smaller is not None:
        p, q = found.p_smaller
        lines += [f"sizes        Wilcoxon p = {p:.3g} for {a.label} finding smaller perturbations, {q:.3g} for {b.label}"]
    for side, other in ((a, b), (b, a)):
        if side.lost_by and [cause.name for cause in side.lost_by] != [other.label]:
            said = f"robust only with {side.label}: what {other.label} lost them to"
            said = said if found.kind == "defense" else f"that only {other.label} beats: what of it beat them"
            beaten = [[cause.name, str(cause.beaten), str(cause.alone)] for cause in side.lost_by]
            lines += ["", f"the {len(side.only)} {said}", "", *_table(beaten, ["", "beaten", "by nothing else"])]
    if found.left_out:
        lines += ["", f"left out, since only one of the two has met them: {', '.join(found.left_out)}"]
    return lines


def _table(rows: list[list[str]], header: list[str]) -> list[str]:
    from tabulate import tabulate

    alignment = ["left", *["right"] * (len(header) - 1)]
    return [tabulate(rows, headers=header, disable_numparse=True, colalign=alignment[: len(header)])]


def _verdict(found: Comparison) -> str:
    from robustbench_lite.leaderboard.ranking import ALPHA

    if found.p > ALPHA:
        return "these examples do not tell them apart"
    better = found.a if found.difference.value > 0 else found.b
    worse = found.b if better is found.a else found.a
    return f"{better.label} is more robust" if found.kind == "defense" else f"{worse.label} is the stronger attack"


def _size(side: Side) -> str:
    return "" if side.median is None else f"{side.median:.3g}"


def _indices(side: Side) -> str:
    if not side.only:
        return ""
    shown = ", ".join(map(str, side.only[:LISTED]))
    return f": {shown}{f', ... ({len(side.only) - LISTED} more with --json)' if len(side.only) > LISTED else ''}"

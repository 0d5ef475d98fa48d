"""Leaderboards as one HTML file for a browser: no request goes out, so it works offline and as an attachment.

Texts from plugins are escaped by jinja2, and the page's own policy forbids scripts and styles other than its own. Without
JavaScript all is there but sorting, filtering and the choice of colours.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robustbench_lite.leaderboard import layout, text
from robustbench_lite.leaderboard.gallery import Example
from robustbench_lite.leaderboard.html import charts, words
from robustbench_lite.leaderboard.measures import Measure, MeasureTable
from robustbench_lite.leaderboard.model import Entry, Leaderboard, Row
from robustbench_lite.published import Published
from robustbench_lite.results import MetricValue
from robustbench_lite.verdict import Verdict


def render(
    tables: Sequence[Leaderboard],
    *,
    command: str = "rbl report --html",
    examples: Mapping[int, Sequence[Example]] | None = None,
    others: Sequence[MeasureTable] = (),
) -> str:
    """The page. command: what makes it again. examples: adversarial images to show, by the table's position.

    others: metrics of models that no table stands beside.
    """
    style, script = _asset("style.css"), _asset("script.js")
    template = _environment().get_template("page.html.jinja")
    page = template.render(
        tables=tables,
        titles=_titles(tables),
        examples=examples or {},
        others=others,
        command=command,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    return page.strip() + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("robustbench_lite.leaderboard", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "charts": charts,
        "words": words,
        "facts": layout.facts,
        "legend": layout.legend,
        "median_grid": lambda table: layout.median_grid(table, text.plain),
        "member_grids": lambda table: layout.member_grids(table, text.plain),
        "measure_grids": _measure_grids,
        "published_grid": _published_grid,
        "about_published": layout.ABOUT_PUBLISHED,
        "ties": lambda table: Counter(row.rank for row in table.ranked),
        "has_naive": lambda table: any(row.naive for row in table.ranked),
        "strongest": strongest,
        "findings": findings,
        "reasons": reasons,
        "remarks": remarks,
        "heat": heat,
        "entry_notes": entry_notes,
    }
    environment.filters |= {
        "percent": text.percent,
        "amount": text.count,
        "link": text.link,
        "plain": text.plain,
        "wrapped": wrapped,
    }
    return environment


def _titles(tables: Sequence[Leaderboard]) -> list[str]:
    """What each table is called, unique on the page: it also names the regions of the page for screen readers."""
    shared = Counter(table.title for table in tables)
    named = [t.title if shared[t.title] == 1 else f"{t.title}, {t.protocol_label}, n = {t.n}, seed {t.seed}" for t in tables]
    seen: Counter[str] = Counter()
    for i, name in enumerate(named):
        seen[name] += 1
        named[i] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return named


def wrapped(label: str) -> Markup:
    """A label that may be broken after its brackets, commas and slashes."""
    return Markup("<wbr>").join(re.findall(r"[^\[\],/]*[\[\],/]?", label))


def strongest(table: Leaderboard, row: Row) -> tuple[str, MetricValue] | None:
    """The attack that left the least of a defense, and what it left."""
    done = [(e.value.value, a.label, e.value) for a, e in zip(table.attacks, row.entries, strict=True) if e.value is not None]
    return min(done, key=lambda found: found[:2])[1:] if done else None


def findings(row: Row) -> list[Verdict]:
    """What checks found against a row, the worst first; a flag that no check raised has no evidence beyond its words."""
    verdicts = [verdict for verdict in row.verdicts if verdict.outcome in ("fail", "warn")]
    others = [Verdict(check=flag, outcome="fail", evidence="") for flag in row.flags if not _of_a_check(flag, verdicts)]
    return sorted([*others, *verdicts], key=lambda verdict: verdict.outcome != "fail")


def reasons(row: Row) -> list[str]:
    """Why a row has no rank, without the flags: these are shown with their evidence."""
    return [reason for reason in row.unranked if not reason.startswith("flagged: ")]


def remarks(row: Row) -> list[str]:
    """A row's notes without those that repeat a check's finding."""
    return [note for note in row.notes if not _of_a_check(note, row.verdicts)]


def _of_a_check(said: str, verdicts: Sequence[Verdict]) -> bool:
    return any(verdict.check in said and verdict.evidence in said for verdict in verdicts)


def heat(entry: Entry) -> int:
    """From 0 to 10: the shade of a cell."""
    return 0 if entry.value is None else round(10 * entry.value.value)


def entry_notes(table: Leaderboard) -> list[str]:
    """What is to be known about results that are whole, a line for each remark with the pairs that it is about."""
    found: dict[str, list[str]] = {}
    for row in table.rows:
        for attack, entry in zip(table.attacks, row.entries, strict=True):
            for note in entry.notes if entry.whole else ():
                found.setdefault(note, []).append(f"{row.defense} under {attack.label}")
    return [f"{words.listed(pairs)}: {note}" for note, pairs in found.items()]


def _measure_grids(measures: Sequence[Measure]) -> tuple[list[layout.Grid], list[str]]:
    notes = layout.Footnotes()
    return layout.measure_grids(measures, text.plain, notes), notes.texts


@dataclass(frozen=True)
class _Listed:
    """Published entries: header, and of each its cells and the remarks on it."""

    header: list[str]
    rows: list[tuple[list[str], list[str]]]
    numeric: list[bool]


def _published_grid(entries: Sequence[Published]) -> _Listed | None:
    grid = layout.published_grid(entries, text.plain, layout.Unmarked())
    if grid is None:
        return None
    about = {text.plain(entry.model): layout.remarks_on(entry) for entry in entries}
    return _Listed(grid.header, [(cells, about[cells[0]]) for cells in grid.rows], grid.numeric)


def _asset(name: str) -> str:
    return (resources.files("robustbench_lite.leaderboard.html") / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """As a content security policy names what it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()

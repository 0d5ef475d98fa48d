"""A leaderboard laid out as text cells and numbered footnotes, which the renderers for people share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from robustbench_lite.leaderboard.measures import Measure
from robustbench_lite.leaderboard.model import NOT_APPLICABLE, Entry, Leaderboard, Row
from robustbench_lite.leaderboard.ranking import ALPHA
from robustbench_lite.leaderboard.text import DASH, count, length, percent, plain, superscript
from robustbench_lite.provenance import RUN_HERE, SELF_REPORTED
from robustbench_lite.published import Published
from robustbench_lite.specs import UNRESTRICTED

Escape = Callable[[str], str]


@dataclass(frozen=True)
class Grid:
    """Header and rows of text cells, all of one width. numeric: which columns are aligned to the right."""

    header: list[str]
    rows: list[list[str]]
    numeric: list[bool]


@dataclass
class Footnotes:
    """Numbered in the order of their first mark; one text has one number."""

    texts: list[str] = field(default_factory=list)

    def mark(self, texts: Iterable[str]) -> str:
        """The marks of these texts, ``¹ ³``, with a blank before each."""
        marks = ""
        for text in texts:
            if text not in self.texts:
                self.texts.append(text)
            marks += f" {superscript(self.texts.index(text) + 1)}"
        return marks


class Unmarked(Footnotes):
    """For layouts that put remarks elsewhere."""

    def mark(self, texts: Iterable[str]) -> str:
        """Nothing."""
        return ""


def main_grid(table: Leaderboard, escape: Escape, notes: Footnotes, link: Escape | None = None) -> Grid:
    """One row per ranked defense. escape: makes a text from a plugin safe; link: shows references, where there is room."""
    return _grid(table, ("rank", "defense"), [[str(row.rank), _named(row, escape, notes)] for row in table.ranked],
                 table.ranked, escape, notes, link)  # fmt: skip


def apart_grid(table: Leaderboard, escape: Escape, notes: Footnotes, link: Escape | None = None) -> Grid:
    """One row per defense without a rank, with the reasons instead; otherwise as ``main_grid``."""
    starts = [[_named(row, escape, notes), escape("; ".join(row.unranked))] for row in table.unranked]
    return _grid(table, ("defense", "why it has no rank"), starts, table.unranked, escape, notes, link)


def _grid(
    table: Leaderboard,
    first: tuple[str, str],
    starts: Sequence[list[str]],
    rows: Sequence[Row],
    escape: Escape,
    notes: Footnotes,
    link: Escape | None,
) -> Grid:
    naive = any(row.naive for row in table.rows)
    header = [
        *first,
        "clean",
        *["naive"] * naive,
        "worst case",
        *(escape(a.label) for a in table.attacks),
        "forwards",
        "backwards",
        "seconds",
    ]
    cells = [[*start, *_row(row, naive, notes)] for start, row in zip(starts, rows, strict=True)]
    numeric = [first[0] == "rank", False, *[True] * (len(header) - 2)]
    if link is not None:
        header.append("reference")
        numeric.append(False)
        cells = [[*each, link(row.reference)] for each, row in zip(cells, rows, strict=True)]
    return Grid(header, cells, numeric)


def median_grid(table: Leaderboard, escape: Escape) -> Grid | None:
    """Median smallest perturbations, one column per minimal-norm attack; None where there is none."""
    columns = [i for i in range(len(table.attacks)) if any(row.entries[i].median for row in table.rows)]
    if not columns:
        return None
    header = ["defense", *(escape(table.attacks[i].label) for i in columns)]
    rows = [[escape(row.defense), *(length(row.entries[i].median) for i in columns)] for row in table.rows]
    return Grid(header, rows, [False, *[True] * len(columns)])


def member_grids(table: Leaderboard, escape: Escape) -> list[tuple[str, Grid]]:
    """Who beat how many: the label of each attack that is made of others, with one column per member."""
    found: list[tuple[str, Grid]] = []
    for i, attack in enumerate(table.attacks):
        rows = [(row.defense, row.entries[i].members) for row in table.rows if row.entries[i].members]
        if rows:
            header = ["defense", *(escape(member.label) for member in rows[0][1])]
            cells = [[escape(defense), *(f"{member.beaten:,}" for member in members)] for defense, members in rows]
            found.append((attack.label, Grid(header, cells, [False, *[True] * (len(header) - 1)])))
    return found


PUBLISHED = "Published, not run here"
ABOUT_PUBLISHED = (
    "Numbers of others: RobustBench's, on its own examples and by its own protocol (AutoAttack), or the authors'. They have no "
    "rank here, and small differences to the rows above mean nothing. Best known: the least that AutoAttack or an external "
    "evaluation leaves."
)


def published_grid(entries: Sequence[Published], escape: Escape, notes: Footnotes, link: Escape | None = None) -> Grid | None:
    """One row per published entry, the most robust first; None where there is none. escape, link: see ``main_grid``."""
    if not entries:
        return None
    header = ["model", "clean", "best known", "AutoAttack", "reported", "architecture", "extra data", "venue", "reference"]
    rows = [
        [
            escape(entry.model) + notes.mark(remarks_on(entry)),
            *(_published(value) for value in (entry.clean, entry.robust, entry.autoattack, entry.reported)),
            escape(entry.architecture),
            "yes" if entry.extra_data else "",
            escape(entry.venue),
            (link or escape)(entry.reference),
        ]
        for entry in sorted(entries, key=lambda e: (-(e.robust or 0.0), e.model))
    ]
    return Grid(header, rows, [False, True, True, True, True, False, False, False, False])


def remarks_on(entry: Published) -> list[str]:
    """What is to be known of a published entry."""
    unreliable = ["RobustBench marks this as unreliable: AutoAttack may overstate its robustness"]
    return [*unreliable * entry.unreliable, *(plain(note) for note in entry.notes)]


def _published(share: float | None) -> str:
    return DASH if share is None else f"{100 * share:.2f}"


def _named(row: Row, escape: Escape, notes: Footnotes) -> str:
    return escape(row.defense) + notes.mark(row.notes)


def measure_grids(measures: Sequence[Measure], escape: Escape, notes: Footnotes) -> list[Grid]:
    """Further metrics, one column each: a row per defense, and in a second grid one per defense and attack."""
    grids = []
    for of_attack in (False, True):
        chosen = [each for each in measures if bool(each.attack) == of_attack]
        columns = sorted({each.metric for each in chosen})
        if not columns:
            continue
        units = {each.metric: each.unit for each in chosen}
        cells = {(each.defense, each.attack, each.metric): each for each in chosen}
        header = ["defense", *["attack"] * of_attack, *(escape(_headed(name, units[name])) for name in columns)]
        rows = []
        for defense, attack in dict.fromkeys((each.defense, each.attack) for each in chosen):
            shown = [_measured(cells.get((defense, attack, name)), notes) for name in columns]
            rows.append([escape(defense), *[escape(attack)] * of_attack, *shown])
        grids.append(Grid(header, rows, [False, *[False] * of_attack, *[True] * len(columns)]))
    return grids


def _headed(metric: str, unit: str) -> str:
    return f"{metric} ({unit})" if unit else metric


def _measured(measure: Measure | None, notes: Footnotes) -> str:
    if measure is None or measure.value is None:
        return DASH + notes.mark([measure.note] if measure is not None and measure.note else [])
    return percent(measure.value) if measure.unit == "%" else length(measure.value)


def _row(row: Row, naive: bool, notes: Footnotes) -> list[str]:
    return [
        percent(row.clean),
        *[percent(row.naive)] * naive,
        percent(row.worst),
        *(_entry(entry) + (notes.mark(entry.notes) if entry.whole else "") for entry in row.entries),
        count(row.cost.forwards),
        count(row.cost.backwards),
        count(row.cost.seconds),
    ]


def _entry(entry: Entry) -> str:
    if entry.status == "done":
        return percent(entry.value)
    if entry.status == NOT_APPLICABLE:
        return DASH
    return f"{entry.status} {entry.progress}".strip()


def facts(table: Leaderboard) -> list[tuple[str, str]]:
    """What the table was computed from, by name."""
    spec, protocol = table.dataset_spec, table.protocol
    settings = [f"{key} {_setting(protocol[key])}" for key in protocol if key not in ("name", "version", "n")]
    parameters = [f"{key}={_setting(value)}" for key, value in spec["parameters"].items()]
    return [
        ("data set", f"{table.dataset} ({', '.join([spec['id'], 'version ' + str(spec['version']), *parameters])})"),
        ("examples", f"n = {'unknown' if table.n is None else table.n}, subset {spec['subset'][:12]}"),
        ("threat model", str(table.threat)),
        ("protocol", f"{table.protocol_label} ({', '.join(settings)})" if settings else table.protocol_label),
        ("seed", str(table.seed)),
        ("attacks", str(len(table.attacks))),
    ]


def legend(table: Leaderboard) -> list[str]:
    """How to read the table; only what it needs."""
    rows: Sequence[Row] = table.rows
    said = [
        "Accuracies are in %, over all n examples, with 95 % Wilson intervals. A clean error counts as not robust.",
        "Worst case: the share of examples that are classified correctly and that none of the row's attacks beats inside the "
        "threat model; counted per example, so it may be lower than every single attack's column.",
        "Rank: by worst case. Rows share a rank where McNemar's paired test cannot separate them from the first row of that "
        f"rank (p > {ALPHA} after Holm's correction). This is not transitive: neighbours of different rank may be close.",
        "Forwards, backwards: passes per example, and seconds: wall clock; sums over the row's attacks.",
    ]
    if any(row.naive for row in rows):
        said.append(
            "Naive: the worst case over those of the row's attacks that do not know the defense: of a wrapper, those made only "
            "on what it wraps; of others, the plain gradient attacks that the protocol names. Shown where McNemar's paired "
            f"test (p <= {ALPHA}) finds that all attacks together beat more: do not quote it as robustness."
        )
    if table.threat.norm == UNRESTRICTED:
        said.append(
            "Unrestricted: every image counts. What an attack may do to one is for its parameters to say (rbl show ATTACK), so "
            "the columns are threat models of their own, and the worst case is over those that are shown."
        )
    if any(row.provenance != RUN_HERE for row in rows):
        said.append(
            "Self-reported: results that others made and handed in as a bundle. They have no rank until rbl verify has "
            "repeated their clean answers, judged their images and run part of the attack again (verified); what does not "
            "stand that is refuted and has no number. All other results were run here."
        )
    if any(row.provenance == SELF_REPORTED for row in table.ranked):
        said.append("Self-reported rows are ranked here like the others, though nobody has verified them: that was asked for.")
    if table.unranked:
        said.append(
            "Rows without a rank are flagged, lack a result, are out of date, or are not verified. Do not compare their "
            "numbers."
        )
    if any(entry.status == NOT_APPLICABLE for row in rows for entry in row.entries):
        said.append(f"{DASH} in an attack's column: it does not apply to that defense; the worst case is over the others.")
    return said


def _setting(value: object) -> str:
    return "none" if value is None else str(value)

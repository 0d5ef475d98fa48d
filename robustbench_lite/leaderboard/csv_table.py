"""Leaderboards as CSV: one row per defense, for spreadsheets and data frames. Proportions lie in [0, 1]."""

from __future__ import annotations

import csv
import io

from robustbench_lite.leaderboard.layout import PUBLISHED, remarks_on
from robustbench_lite.leaderboard.model import Leaderboard, Row
from robustbench_lite.published import Published
from robustbench_lite.results import MetricValue

# A spreadsheet runs a cell that begins so as a formula; the wide forms of these signs count too.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def render(table: Leaderboard) -> str:
    """The table as CSV text. Cells without a value are empty; each attack has a column with its status.

    Published entries follow the rows that were run, and say so in the column ``provenance``.
    """
    header = ["rank", "defense", "id", "version", "dataset", "threat", "protocol", "seed", "n"]
    for name in ("clean accuracy", "naive", "worst case", *(attack.label for attack in table.attacks)):
        header += [name, f"{name} low", f"{name} high"]
    header += [f"{attack.label} status" for attack in table.attacks]
    header += [
        "forwards",
        "backwards",
        "seconds",
        "not ranked because",
        "flags",
        "notes",
        "fidelity",
        "extra data",
        "reference",
        "provenance",
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([safe(name) for name in header])
    writer.writerows(_cells(table, row) for row in table.rows)
    writer.writerows(_published(entry, header) for entry in table.published)
    return text.getvalue()


def safe(text: str) -> str:
    """``text``, which no spreadsheet takes for a formula: an apostrophe goes before what could be one."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def _cells(table: Leaderboard, row: Row) -> list[str]:
    found = ["" if row.rank is None else str(row.rank), safe(row.defense), safe(row.id), str(row.version)]
    found += [safe(table.dataset), str(table.threat), safe(table.protocol_label), str(table.seed)]
    found.append("" if table.n is None else str(table.n))
    for value in (row.clean, row.naive, row.worst, *(entry.value for entry in row.entries)):
        found += _value(value)
    found += [f"{entry.status} {entry.progress}".strip() for entry in row.entries]
    found += [_number(row.cost.forwards), _number(row.cost.backwards), _number(row.cost.seconds)]
    labelled = [
        f"{attack.label}: {note}" for attack, entry in zip(table.attacks, row.entries, strict=True) for note in entry.notes
    ]
    found.append(safe("; ".join(row.unranked)))
    about = (row.fidelity, row.extra_data, row.reference)
    return [*found, safe("; ".join(row.flags)), safe("; ".join([*row.notes, *labelled])), *map(safe, about), row.provenance]


def _published(entry: Published, header: list[str]) -> list[str]:
    facts = {
        "defense": entry.model,
        "id": f"{entry.source}/{entry.model}",
        "dataset": entry.dataset,
        "threat": entry.threat,
        "clean accuracy": _number(entry.clean),
        "worst case": _number(entry.robust),
        "notes": "; ".join(remarks_on(entry)),
        "extra data": "yes" if entry.extra_data else "",
        "reference": entry.reference,
        "provenance": PUBLISHED.lower(),
    }
    return [safe(facts.get(name, "")) for name in header]


def _value(value: MetricValue | None) -> list[str]:
    return ["", "", ""] if value is None else [_number(value.value), _number(value.low), _number(value.high)]


def _number(number: float | None) -> str:
    return "" if number is None else repr(float(number))

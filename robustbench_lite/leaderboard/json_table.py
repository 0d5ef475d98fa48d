"""Leaderboards as JSON, for programs; ``leaderboard.schema.json`` (JSON Schema, draft 2020-12) says what is in them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from importlib import resources
from typing import Any

from robustbench_lite.leaderboard.measures import Measure, MeasureTable
from robustbench_lite.leaderboard.model import Entry, Leaderboard, Row
from robustbench_lite.leaderboard.text import link
from robustbench_lite.results import MetricValue

FORMAT = 1


def render(table: Leaderboard) -> str:
    """The table as JSON text, ASCII only."""
    return json.dumps(to_json(table), indent=2, allow_nan=False) + "\n"


def to_json(table: Leaderboard) -> dict[str, Any]:
    """The table as plain data. Proportions lie in [0, 1]; an infinite number is the text ``"inf"``."""
    return {
        "format": FORMAT,
        "dataset": {"name": table.dataset, **table.dataset_spec},
        "threat": {"text": str(table.threat), "norm": table.threat.norm, "eps": table.threat.eps},
        "protocol": dict(table.protocol),
        "seed": table.seed,
        "n": table.n,
        "attacks": [
            {"label": a.label, "id": a.id, "version": a.version, "access": a.access, "goal": a.goal} for a in table.attacks
        ],
        "rows": [_row(table, row) for row in table.rows],
        "measures": [_measure(each) for each in table.measures],
        "published": [each.model_dump(mode="json") | {"link": link(each.reference)} for each in table.published],
    }


def measures_to_json(table: MeasureTable) -> dict[str, Any]:
    """Measures that no leaderboard stands beside, as a table without attacks and rows; of no threat model."""
    return {
        "format": FORMAT,
        "dataset": {"name": table.dataset, **table.dataset_spec, "subset": None},
        "threat": None,
        "protocol": dict(table.protocol),
        "seed": table.seed,
        "n": None,
        "attacks": [],
        "rows": [],
        "measures": [_measure(each) for each in table.measures],
    }


def schema() -> dict[str, Any]:
    """The published JSON Schema."""
    text = (resources.files("robustbench_lite.leaderboard") / "leaderboard.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _row(table: Leaderboard, row: Row) -> dict[str, Any]:
    return {
        "rank": row.rank,
        "defense": {
            "label": row.defense,
            "id": row.id,
            "version": row.version,
            "weights": row.weights,
            "stochastic": row.stochastic,
            "fidelity": row.fidelity,
            "extra_data": row.extra_data,
            "reference": row.reference,
            "link": link(row.reference),
        },
        "clean_accuracy": _value(row.clean),
        "naive": _value(row.naive),
        "worst_case": _value(row.worst),
        "attacks": {attack.label: _entry(entry) for attack, entry in zip(table.attacks, row.entries, strict=True)},
        "cost": {"forwards": row.cost.forwards, "backwards": row.cost.backwards, "seconds": row.cost.seconds},
        "not_ranked_because": list(row.unranked),
        "flags": list(row.flags),
        "verdicts": [asdict(verdict) for verdict in row.verdicts],
        "notes": list(row.notes),
        "provenance": row.provenance,
    }


def _measure(measure: Measure) -> dict[str, Any]:
    return {
        "defense": measure.defense,
        "attack": measure.attack or None,
        "metric": {"label": measure.metric, "id": measure.id, "version": measure.version, "scope": measure.scope},
        "direction": measure.direction,
        "unit": measure.unit,
        "value": _value(measure.value),
        "note": measure.note,
    }


def _entry(entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = {"status": entry.status, "robust_accuracy": _value(entry.value)}
    if entry.progress:
        found["progress"] = entry.progress
    if entry.median is not None:
        found["median_perturbation"] = _value(entry.median)
    if entry.members:
        found["members"] = [{"label": member.label, "beaten": member.beaten} for member in entry.members]
    if (origin := entry.origin) is not None:
        said = origin.problem or (origin.check.said if origin.check else "")
        about = {name: getattr(origin, name) for name in ("status", "by", "where", "bundle", "imported")}
        found["origin"] = about | {"found": said}
    return found | {"notes": list(entry.notes)}


def _value(value: MetricValue | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"value": _number(value.value), "low": _number(value.low), "high": _number(value.high), "n": value.n}


def _number(number: float | None) -> float | str | None:
    return "inf" if number is not None and math.isinf(number) else number

"""What a leaderboard asks the registry for: metrics, and where a method is described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustbench_lite.errors import UnknownName, UsageError
from robustbench_lite.results import MetricValue
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry

# Scope cell: called with a CellResult; scope defense: with the CellResults of one defense.
Metric = Callable[[Any, Threat], MetricValue]


def metric_from(registry: Registry) -> Callable[[str], Metric]:
    """A resolver of metrics by id, such as ``rbl/worst-case``; it raises UsageError where no plugin brings the metric."""
    from robustbench_lite.resolve import resolve

    def find(identifier: str) -> Metric:
        try:
            found: Metric = resolve(registry, "metric", identifier).instance
        except UnknownName as error:
            raise UsageError(
                f"a leaderboard needs the metric {identifier}, which cannot be used: {error.message}",
                hint="pip install rbl-metrics" if identifier.startswith("rbl/") else error.hint,
            ) from error
        return found

    return find


@dataclass(frozen=True, kw_only=True)
class About:
    """What a plugin says of a defense: where it is described, how close to its paper it is, what else it was trained on."""

    reference: str = ""
    fidelity: str = ""
    extra_data: str = ""


def about_from(registry: Registry) -> Callable[[str], About]:
    """What is declared of a defense, by its id (``"rbl/pgd-at"``); nothing where its plugin is not installed."""

    def find(identifier: str) -> About:
        entry = registry.find("defense", identifier)
        if entry is None:
            return About()
        spec = entry.spec
        return About(reference=spec.reference, **{n: getattr(spec, n, "") for n in ("fidelity", "extra_data")})

    return find

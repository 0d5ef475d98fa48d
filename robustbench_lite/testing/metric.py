"""The conformance suite of metrics of scopes ``cell`` and ``defense``, on stored results made up for the purpose."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from robustbench_lite.errors import RblError
from robustbench_lite.results import CellResult, MetricValue
from robustbench_lite.specs import MetricSpec
from robustbench_lite.testing.checks import Failed, Skipped, Subject, Suite, describe
from robustbench_lite.testing.common import COMMON, import_cost
from robustbench_lite.threat import Threat

THREAT = Threat.parse("linf:0.1")
N = 40


def make_cell(
    *,
    n: int = N,
    robust: float = 0.5,
    correct: float = 0.9,
    threat: Threat | str = THREAT,
    seed: int = 0,
    attack: str = "kit-attack",
    goal: str = "fixed-budget",
    status: str = "done",
) -> CellResult:
    """A stored result as the judge writes them: ``correct`` of n examples right, ``robust`` of these not beaten.

    Sizes of the accepted points are spread over the threat model. No arrays for n = 0.
    """
    limits = Threat.parse(threat) if isinstance(threat, str) else threat
    radius = limits.eps if math.isfinite(limits.eps) else 0.1
    rng = np.random.default_rng(seed)
    right = np.arange(n) < round(correct * n)
    beaten = right & (np.arange(n) >= round(robust * right.sum()))
    order = rng.permutation(n)
    right, beaten = right[order], beaten[order]
    y = np.arange(n) % 10
    clean_pred = np.where(right, y, (y + 1) % 10)
    size = np.where(beaten, radius * rng.uniform(0.2, 1.0, n), np.inf)
    margin = np.where(right, 1.0, -1.0) * rng.uniform(0.1, 3.0, n)
    after = np.where(beaten, -rng.uniform(0.1, 3.0, n), margin)
    adv_pred = np.where(beaten, (y + 2) % 10, clean_pred)
    logits = {"clean": _logits(y, clean_pred, margin, rng), "adv": _logits(y, adv_pred, after, rng)}
    probability = {when: np.exp(z - np.logaddexp.reduce(z, axis=1)[:, None]) for when, z in logits.items()}
    distance = np.where(beaten, size, 0.0)
    queries = np.where(right, 20, 0)
    arrays: dict[str, np.ndarray] = {
        "index": np.arange(n),
        "y": y,
        "clean_pred": clean_pred,
        "clean_correct": right,
        "adv_pred": adv_pred,
        "success": beaten,
        "size": size,
        **{norm: distance * scale for norm, scale in (("linf", 1.0), ("l2", 4.0), ("l1", 20.0))},
        "l0": np.where(beaten, 48.0, 0.0),
        "entropy": np.where(beaten, rng.uniform(0.5, 1.0, n), 0.0),
        "values": np.full(n, 64),
        "pixels": np.full(n, 64),
        "margin_clean": margin.astype(np.float32),
        "margin_adv": after.astype(np.float32),
        **{f"p_{when}": p[np.arange(n), y].astype(np.float32) for when, p in probability.items()},
        **{f"logits_{when}": z.astype(np.float32) for when, z in logits.items()},
        "clean_rate": right.astype(np.float32),
        "adv_rate": (right & ~beaten).astype(np.float32),
        "forwards": queries,
        "backwards": queries // 2,
        "queries": queries,
        "rejected": np.where(right, np.where(beaten, 0, 1), 7).astype(np.uint8),
        "source": beaten.astype(np.uint8),
        "unstable": np.zeros(n, dtype=bool),
    }
    spec = {
        "format": 1,
        "protocol": {"name": "kit", "version": 1, "eot": 1, "eval_draws": 1, "budget": None, "n": n},
        "dataset": {"id": "kit/data", "label": "data", "version": 1, "parameters": {}, "name": "data", "fingerprint": "f"},
        "defense": {"id": "kit/defense", "label": "defense", "version": 1, "parameters": {}, "weights": None, "base": None}
        | {"stochastic": False, "differentiable": True, "surrogate": False, "rejects": False},
        "attack": {"id": f"kit/{attack}", "label": attack, "version": 1, "parameters": {}, "access": "gradient", "goal": goal},
        "threat": str(limits),
        "seed": 0,
    }
    key = f"{attack}-{seed}-{n}"
    return CellResult(key=key, spec=spec, arrays=arrays if n else {}, status=status, seconds=1.5, attempts=1)


def _logits(y: np.ndarray, predicted: np.ndarray, margin: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, 10) float64 logits in which the label leads the best other class by ``margin`` (n,)."""
    rows, rival = np.arange(len(y)), np.where(predicted == y, (y + 1) % 10, predicted)
    found = rng.uniform(-3.0, -1.0, (len(y), 10))
    found[rows, y], found[rows, rival] = np.maximum(margin, 0), np.maximum(-margin, 0)
    return found


class MetricSubject(Subject):
    """A metric under test."""

    kind: ClassVar[str] = "metric"

    @property
    def declared(self) -> MetricSpec:
        """The spec of the metric."""
        spec = self.entry.spec
        if not isinstance(spec, MetricSpec):
            raise TypeError(f"{self.entry.id} is not a metric")
        return spec

    def call(self, *cells: CellResult, threat: Threat = THREAT) -> Any:
        """The metric of these cells: of the first one for scope ``cell``. Skipped where it needs the model."""
        scope = self.declared.scope
        if scope == "model":
            raise Skipped("a metric of scope 'model' has a suite of its own", fix="derive from ModelMetricConformance")
        metric: Callable[..., Any] = self.found.instance
        return metric(cells[0] if scope == "cell" else list(cells), threat)

    def value(self, *cells: CellResult, threat: Threat = THREAT) -> MetricValue:
        """As ``call``; Skipped where it does not even return a MetricValue for an ordinary cell."""
        try:
            plain = self.call(*_ordinary())
        except (Skipped, KeyboardInterrupt):
            raise
        except BaseException:
            raise Skipped("it raises: see the check `runs`") from None
        if not isinstance(plain, MetricValue):
            raise Skipped("it returns no MetricValue: see the check `runs`")
        found = self.call(*cells, threat=threat)
        if not isinstance(found, MetricValue):
            raise Failed(f"it returned {type(found).__name__} for another cell", fix="return a MetricValue always")
        return found


def _ordinary() -> list[CellResult]:
    return [make_cell(), make_cell(robust=0.7, seed=1, attack="other-attack")]


def _special() -> list[tuple[str, list[CellResult], Threat]]:
    """Cells at the edges of what is stored, each with the threat that a table asks about."""
    minimal = make_cell(threat="linf", goal="minimal-norm")
    return [
        ("nothing beaten", [make_cell(robust=1.0)], THREAT),
        ("everything beaten", [make_cell(robust=0.0)], THREAT),
        ("everything correct", [make_cell(correct=1.0)], THREAT),
        ("nothing correct", [make_cell(correct=0.0)], THREAT),
        ("one example", [make_cell(n=1, correct=1.0)], THREAT),
        ("a smaller radius than was attacked", [make_cell()], THREAT.at(0.05)),
        ("a minimal-norm attack", [minimal], THREAT),
    ]


METRIC_SUITE: Suite[MetricSubject] = Suite("metric", *COMMON)
_check = METRIC_SUITE.check


@_check
def factory_is_light(subject: MetricSubject) -> None:
    """Computing it from stored results imports no torch, so that tables are made where there is none."""
    if subject.declared.scope == "model":
        raise Skipped("a metric of scope 'model' needs torch")
    module = subject.entry.spec.factory.partition(":")[0]
    seconds, torch = import_cost(module)
    if torch:
        raise Failed(
            f"importing {module} imports torch ({seconds:.1f} s)", fix="compute with numpy; stored arrays need no more"
        )


@_check
def runs(subject: MetricSubject) -> None:
    """Called as its scope says, it returns a MetricValue of Python numbers."""
    scope = subject.declared.scope
    called = "(cell, threat)" if scope == "cell" else "(cells, threat)"
    try:
        found = subject.call(*_ordinary())
    except (Skipped, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Failed(f"called as {called} it raises {describe(error)}", fix=f"scope {scope!r} is called as {called}") from error
    if not isinstance(found, MetricValue):
        raise Failed(f"it returned {type(found).__name__}", fix="return robustbench_lite.MetricValue(value=...)")
    for name in ("value", "low", "high"):
        number = getattr(found, name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, (int, float))):
            raise Failed(f"{name} is {type(number).__name__}", fix=f"give float({name}): it is written as JSON")


@_check
def edges(subject: MetricSubject) -> None:
    """It gives a value for every complete cell, also where nothing or everything is correct or beaten."""
    for what, cells, threat in _special():
        try:
            subject.value(*cells, threat=threat)
        except (Skipped, Failed, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise Failed(
                f"for a cell with {what} it raises {describe(error)}", fix="return nan where there is no number"
            ) from error


@_check
def in_range(subject: MetricSubject) -> None:
    """It is a number for ordinary results; where its unit is %, for all with correct examples, and in [0, 1]."""
    share = subject.declared.unit == "%"
    cells = [(what, found, threat) for what, found, threat in _special() if share and what != "nothing correct"]
    for what, made, threat in [("ordinary results", _ordinary(), THREAT), *cells]:
        found = _value_or_skip(subject, made, threat)
        if math.isnan(found.value):
            raise Failed(f"it is nan for a cell with {what}", fix="nan stands for no number; here there is one")
        if share and not 0 <= found.value <= 1:
            raise Failed(f"it is {found.value:g} for a cell with {what} and its unit is %", fix="keep proportions in [0, 1]")


@_check
def empty_cell(subject: MetricSubject) -> None:
    """For a cell with nothing stored it raises an RblError, or says that n is 0 or the value nan."""
    subject.value(*_ordinary())
    try:
        found = subject.call(make_cell(n=0, status="error"))
    except RblError:
        return
    except Skipped:
        raise
    except Exception as error:
        raise Failed(f"it raises {describe(error)}", fix="raise UsageError with a hint, or return nan") from error
    if not isinstance(found, MetricValue) or not (math.isnan(found.value) or found.n == 0):
        raise Failed(f"it gives {found!r}", fix="an error is never a score: raise UsageError, or return nan")


@_check
def pure(subject: MetricSubject) -> None:
    """The same results give the same value, and are left as they are."""
    cells = _ordinary()
    kept = copy.deepcopy(cells)
    first, second = subject.value(*cells), subject.value(*cells)
    for cell, before in zip(cells, kept, strict=True):
        for name, values in before.arrays.items():
            if not np.array_equal(values, cell.arrays[name], equal_nan=values.dtype.kind == "f"):
                raise Failed(f"it changed the array {name!r} in place", fix="work on a copy")
        if json.dumps(cell.spec) != json.dumps(before.spec) or cell.arrays.keys() != before.arrays.keys():
            raise Failed("it changed the stored result", fix="work on a copy")
    if not _equal(first, second) or not _equal(first, subject.value(*copy.deepcopy(kept))):
        raise Failed(f"it gave {first.value!r} and then {second.value!r}", fix="seed what it draws, and keep no state")


@_check
def interval_holds_value(subject: MetricSubject) -> None:
    """Its interval, where it has one, has two ends with the value between them."""
    for what, cells, threat in [("ordinary results", _ordinary(), THREAT), *_special()]:
        found = _value_or_skip(subject, cells, threat)
        if (found.low is None) != (found.high is None):
            raise Failed(f"for a cell with {what} one end of the interval is missing", fix="give both low and high, or neither")
        if found.low is None or found.high is None or math.isnan(found.value):
            continue
        if not found.low <= found.value <= found.high:
            raise Failed(
                f"for a cell with {what} the value {found.value:g} is outside [{found.low:g}, {found.high:g}]",
                fix="compute the interval of the same quantity, with a method that holds at the edges",
            )


@_check
def direction(subject: MetricSubject) -> None:
    """A defense that is never beaten is not worse by it than one that is always beaten, in the direction that it declares."""
    declared = subject.declared.direction
    if declared == "none":
        raise Skipped("it declares no direction")
    strong, weak = (_value_or_skip(subject, [make_cell(robust=share)], THREAT).value for share in (1.0, 0.0))
    worse = strong < weak if declared == "higher" else strong > weak
    if worse:
        raise Failed(
            f"{declared} is better, and it is {strong:g} for a cell with nothing beaten and {weak:g} with everything beaten",
            fix=f"declare direction={'lower' if declared == 'higher' else 'higher'!r} or 'none' in its MetricSpec",
        )


def _value_or_skip(subject: MetricSubject, cells: Sequence[CellResult], threat: Threat) -> MetricValue:
    try:
        return subject.value(*cells, threat=threat)
    except (Skipped, Failed, KeyboardInterrupt):
        raise
    except BaseException:
        raise Skipped("it raises at the edges: see the check `edges`") from None


def _equal(a: MetricValue, b: MetricValue) -> bool:
    return repr(a) == repr(b)

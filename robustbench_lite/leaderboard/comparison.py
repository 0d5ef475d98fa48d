"""Two defenses, or two attacks, on the same examples: how much they differ, how sure that is, where, and by whose doing.

From stored arrays alone. Defenses are compared by their worst case over the attacks that both have met; attacks on each defense
that both have met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from robustbench_lite.errors import AmbiguousName, UnknownName, UsageError, did_you_mean
from robustbench_lite.leaderboard.collect import Asked, Group, Spec, Stored, collect
from robustbench_lite.leaderboard.labels import distinct_labels, meant
from robustbench_lite.leaderboard.text import plain
from robustbench_lite.results import CellResult, MetricValue
from robustbench_lite.statistics import difference_interval, mcnemar, median, wilcoxon_smaller, wilson
from robustbench_lite.threat import Threat

KINDS = ("defense", "attack")

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What beat some of the examples. alone: those that nothing else of the row's beat."""

    name: str
    beaten: int
    alone: int


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two. robust: its robust accuracy. only: indices of the examples robust here and not on the other side.

    lost_by: what beat these on the other side, most first. clean: accuracy without an attack. passes: forward and backward
    passes per example. median: of the smallest perturbations that a minimal-norm attack found, inf for those it did not.
    """

    label: str
    robust: MetricValue
    clean: MetricValue
    only: tuple[int, ...]
    lost_by: tuple[Cause, ...]
    passes: float
    median: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides over the same n examples.

    kind: ``defense`` or ``attack``; against: what both have met, attacks or one defense. difference: a's robust accuracy minus
    b's, with Newcombe's 95 % interval; p: McNemar's. both, neither: how many examples are robust on both sides, on neither.
    p_smaller: of two minimal-norm attacks, Wilcoxon's p for "a's perturbations are not smaller" and the reverse. left_out: what
    only one side has met.
    """

    kind: str
    dataset: str
    threat: str
    protocol: str
    seed: int
    n: int
    against: tuple[str, ...]
    a: Side
    b: Side
    difference: MetricValue
    p: float
    both: int
    neither: int
    p_smaller: tuple[float, float] | None = None
    left_out: tuple[str, ...] = ()


def compare(
    cells: Iterable[Stored],
    a: str,
    b: str,
    *,
    kind: str | None = None,
    wanted: Callable[[str, Threat], bool] = lambda dataset, threat: True,
    note: Callable[[str], None] = lambda said: None,
) -> list[Comparison]:
    """All comparisons of two defenses or attacks that results allow; wanted: by data set and threat model.

    a, b: labels, or names without parameters where these stand for one label only (``labels.meant``).

    Raises UnknownName, AmbiguousName, and UsageError where both are never met together.
    """
    groups = collect(cells, note)
    labels = {_label(cell, each) for each in ([kind] if kind else KINDS) for group in groups for cell in group.cells}
    a, b = meant(a, labels), meant(b, labels)
    kind = _kind(groups, a, b, kind)
    found: list[Comparison] = []
    for group in groups:
        for threat in group.threats(()):
            if wanted(str(group.asked["dataset"]["name"]), threat):
                inside = [cell for cell in group.cells if cell.under(threat)]
                found += _defenses(group, threat, inside, a, b) if kind == "defense" else _attacks(group, threat, inside, a, b)
    if not found:
        met = "was attacked alike" if kind == "defense" else "met the same defense"
        raise UsageError(
            f"no data set, threat model, protocol and seed in which both {a} and {b} {met}, with all results whole",
            hint=f"rbl run --{kind} '{a},{b}' runs them on the same examples",
        )
    return found


def _kind(groups: Sequence[Group], a: str, b: str, kind: str | None) -> str:
    """What a and b are the names of."""
    known = {each: sorted({_label(cell, each) for group in groups for cell in group.cells}) for each in KINDS}
    names = {each: {*labels, *(label for group in groups for label in _labels(group.cells, each).values())}
             for each, labels in known.items()}  # fmt: skip
    fitting = [each for each in ([kind] if kind else KINDS) if a in names[each] and b in names[each]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise AmbiguousName(f"{a!r} and {b!r} are names of defenses and of attacks", hint="add --kind defense or --kind attack")
    for name in (a, b):
        others = [label for each in KINDS if kind in (None, each) for label in known[each]]
        if not any(name in names[each] for each in KINDS if kind in (None, each)):
            hint = did_you_mean(name, others) or f"stored are: {', '.join(others) or 'none'}"
            raise UnknownName(f"no results of {kind or 'a defense or an attack'} {name!r}", hint=hint)
    raise UsageError(f"{a} and {b} are a defense and an attack", hint="compare two defenses, or two attacks")


def _label(cell: Asked, kind: str) -> str:
    return plain(cell.stored.spec[kind]["label"])


def _labels(cells: Sequence[Asked], kind: str) -> dict[str, str]:
    """The labels of defenses or attacks as tables show them, by identity."""
    specs: dict[str, Spec] = {getattr(cell, kind): cell.stored.spec[kind] for cell in cells}
    return distinct_labels(specs)


def _pick(cells: Sequence[Asked], kind: str, name: str) -> list[Asked]:
    """The cells of one defense or attack. Raises AmbiguousName where the name stands for several."""
    labels = _labels(cells, kind)
    identities = [identity for identity, label in labels.items() if label == name]
    identities = identities or sorted({getattr(cell, kind) for cell in cells if _label(cell, kind) == name})
    if len(identities) > 1:
        several = ", ".join(repr(labels[identity]) for identity in identities)
        raise AmbiguousName(f"{name!r} stands for several {kind}s with results", hint=f"name one of {several}")
    return [cell for cell in cells if getattr(cell, kind) in identities]


def _defenses(group: Group, threat: Threat, cells: Sequence[Asked], a: str, b: str) -> Iterator[Comparison]:
    labels = _labels(cells, "attack")
    first, second = (
        {labels[cell.attack]: result for cell in _pick(cells, "defense", name) if (result := _whole(cell))} for name in (a, b)
    )
    shared = sorted(set(first) & set(second))
    if shared:
        left_out = tuple(sorted(set(first) ^ set(second)))
        sides = ([(name, each[name]) for name in shared] for each in (first, second))
        yield from _compared("defense", group, threat, (a, b), *sides, against=tuple(shared), left_out=left_out)


def _attacks(group: Group, threat: Threat, cells: Sequence[Asked], a: str, b: str) -> Iterator[Comparison]:
    labels = _labels(cells, "defense")
    first, second = ({labels[cell.defense]: cell for cell in _pick(cells, "attack", name)} for name in (a, b))
    for defense in sorted(set(first) & set(second)):
        one, other = _whole(first[defense]), _whole(second[defense])
        if one and other:
            yield from _compared("attack", group, threat, (a, b), [(a, one)], [(b, other)], against=(defense,))


def _whole(cell: Asked) -> CellResult | None:
    result = cell.stored.load_for_tables()
    return result if result.status == "done" and result.n else None


Runs = Sequence[tuple[str, CellResult]]


def _compared(
    kind: str,
    group: Group,
    threat: Threat,
    names: tuple[str, str],
    first: Runs,
    second: Runs,
    *,
    against: tuple[str, ...],
    left_out: tuple[str, ...] = (),
) -> Iterator[Comparison]:
    """The comparison; none where the examples differ."""
    index = first[0][1].arrays["index"]
    if not all(np.array_equal(result.arrays["index"], index) for _, result in (*first, *second)):
        return
    one, other = (np.logical_and.reduce([result.robust(threat) for _, result in runs]) for runs in (first, second))
    gap, (low, high) = difference_interval(one, other)
    minimal = kind == "attack" and all(math.isinf(runs[0][1].threat.eps) for runs in (first, second))
    sizes = [_sizes(runs[0][1]) for runs in (first, second)] if minimal else []
    yield Comparison(
        kind=kind,
        dataset=plain(group.asked["dataset"]["name"]),
        threat=str(threat),
        protocol=f"{group.asked['protocol']['name']}@{group.asked['protocol']['version']}",
        seed=group.asked["seed"],
        n=len(index),
        against=against,
        a=_side(names[0], first, one, second, other, threat),
        b=_side(names[1], second, other, first, one, threat),
        difference=MetricValue(value=gap, low=low, high=high, n=len(index)),
        p=mcnemar(one, other),
        both=int((one & other).sum()),
        neither=int((~one & ~other).sum()),
        p_smaller=(wilcoxon_smaller(*sizes), wilcoxon_smaller(*reversed(sizes))) if minimal else None,
        left_out=left_out,
    )


def _side(label: str, runs: Runs, robust: Mask, others: Runs, robust_there: Mask, threat: Threat) -> Side:
    only = robust & ~robust_there
    results = [result for _, result in runs]
    sizes = _sizes(results[0]) if len(results) == 1 and math.isinf(results[0].threat.eps) else None
    return Side(
        label=label,
        robust=_share(robust),
        clean=_share(np.logical_and.reduce([result.arrays["clean_correct"] for result in results])),
        only=tuple(results[0].arrays["index"][only].tolist()),
        lost_by=tuple(_causes(others, only, threat)),
        passes=sum(float(result.arrays[name].mean()) for result in results for name in ("forwards", "backwards")),
        median=None if sizes is None else median(sizes[results[0].arrays["clean_correct"]]),
    )


def _share(right: Mask) -> MetricValue:
    low, high = wilson(int(right.sum()), len(right))
    return MetricValue(value=float(right.mean()), low=low, high=high, n=len(right))


def _sizes(result: CellResult) -> npt.NDArray[np.float64]:
    """(n,) the smallest perturbation found, inf where none was, 0 where none is needed."""
    found = np.where(result.arrays["success"], result.arrays["size"], np.inf)
    return np.where(result.arrays["clean_correct"], found, 0.0)


def _causes(runs: Runs, chosen: Mask, threat: Threat) -> list[Cause]:
    """What beat the chosen examples: attacks, and of an attack made of others its members; and clean errors."""
    beaten: dict[str, Mask] = {}
    wrong = np.logical_or.reduce([~result.arrays["clean_correct"] for _, result in runs]) & chosen
    if wrong.any():
        beaten["wrong without an attack"] = wrong
    for name, result in runs:
        hit = chosen & result.arrays["clean_correct"] & ~result.robust(threat)
        if len(runs) == 1 and "member" in result.arrays:
            labels = ["itself", *(plain(member["label"]) for member in result.spec["attack"].get("members", ()))]
            beaten |= {f"{name}: {label}": hit & (result.arrays["member"] == i) for i, label in enumerate(labels)}
        else:
            beaten[name] = hit
    times = np.sum([*beaten.values()], axis=0)
    found = [Cause(name=name, beaten=int(hit.sum()), alone=int((hit & (times == 1)).sum())) for name, hit in beaten.items()]
    return sorted((cause for cause in found if cause.beaten), key=lambda cause: (-cause.beaten, -cause.alone, cause.name))

"""Charts as numbers that the templates draw in SVG: what stands where. Nothing here knows of HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from robustbench_lite.leaderboard.model import Attack, Leaderboard, RadiusCurve, Row

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 46
STYLES = 8  # lines with a colour of their own; the others are grey
CHARACTER, LINE = 6.3, 13.0  # size of a label's letters
_PLACES = ((8.0, 0.0, "start"), (-8.0, 0.0, "end"), (0.0, -13.0, "middle"), (0.0, 13.0, "middle"))  # of a label, in turn

Place = Callable[[float], float]


@dataclass(frozen=True)
class Axis:
    """place: where a value lies. ticks: (position, text)."""

    place: Place
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Line:
    """A defense's curve: style from 0, or None for grey; path and band as SVG path data; values at ``Curves.radii``, in %."""

    name: str
    style: int | None
    path: str
    band: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Curves:
    """mark: where the table's radius lies. radii: of the table beside the chart."""

    x: Axis
    y: Axis
    mark: float
    lines: tuple[Line, ...]
    radii: tuple[str, ...]


@dataclass(frozen=True)
class Label:
    """Where a point's name stands; anchor: which end of it."""

    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Point:
    """An attack: cost in passes per image, robust accuracy that it leaves in %. place: None where no name fits."""

    label: str
    access: str
    x: float
    y: float
    passes: float
    left: float
    place: Label | None


@dataclass(frozen=True)
class Scatter:
    """Attack strength against cost, over ``defenses`` defenses."""

    x: Axis
    y: Axis
    points: tuple[Point, ...]
    defenses: int


@dataclass(frozen=True)
class Transfer:
    """One attack on the defense itself and crafted on others: header, and per row the index of its entries (None: no such)."""

    craft: str
    header: tuple[str, ...]
    columns: tuple[int, ...]


def linear(low: float, high: float, start: float, end: float) -> Place:
    """A straight scale."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def ticks(high: float, wanted: int = 6) -> list[float]:
    """Round numbers from 0 to ``high``, about as many as wanted."""
    raw = high / wanted
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * (1 - 1e-9))
    return [i * step for i in range(int(high / step + 1e-9) + 1)]


def _percent_axis() -> Axis:
    place = linear(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    return Axis(place, tuple((place(i / 5), str(20 * i)) for i in range(6)))


def curves(table: Leaderboard) -> Curves | None:
    """Robust accuracy over the radius, best defense first; None where no row has a curve, or the threat has no radius."""
    shown = [(row, row.curve) for row in table.rows if row.curve is not None]
    if not shown or not 0 < table.threat.eps < math.inf:
        return None
    end = max(curve.points[-1][0] for _, curve in shown)
    place = linear(0.0, end, LEFT, WIDTH - RIGHT)
    x = Axis(place, tuple((place(t), f"{t:g}") for t in ticks(end)))
    y = _percent_axis()
    radii = [end * i / 8 for i in range(9)]
    lines = []
    for i, (row, curve) in enumerate(shown):
        style = i if i < STYLES and row.rank is not None else None
        band = _band(curve, x.place, y.place) if style is not None else ""
        values = tuple(_value_at(curve, radius) for radius in radii)
        lines.append(Line(row.defense, style, _path(_corners(curve, 1), x.place, y.place), band, values))
    return Curves(x, y, place(table.threat.eps), tuple(lines), tuple(f"{radius:.3g}" for radius in radii))


def _corners(curve: RadiusCurve, which: int) -> list[tuple[float, float]]:
    """The points through which a curve is drawn; ``which``: 1 accuracy, 2 low, 3 high."""
    found: list[tuple[float, float]] = []
    for point in curve.points:
        if curve.step and found and found[-1][1] != point[which]:
            found.append((point[0], found[-1][1]))
        if not found or found[-1][1] != point[which] or point is curve.points[-1] or not curve.step:
            found.append((point[0], point[which]))
    return found


def _path(corners: Iterable[tuple[float, float]], x: Place, y: Place) -> str:
    return "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in corners)


def _band(curve: RadiusCurve, x: Place, y: Place) -> str:
    return _path([*_corners(curve, 3), *reversed(_corners(curve, 2))], x, y) + "Z"


def _value_at(curve: RadiusCurve, radius: float) -> str:
    """In %, with its interval; a dash where that radius was not attacked."""
    slack = 1e-9 * (1 + radius)
    below = [point for point in curve.points if point[0] <= radius + slack]
    if not below or not (curve.step or abs(below[-1][0] - radius) <= slack):
        return "–"
    _, value, low, high = below[-1]
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def scatter(table: Leaderboard) -> Scatter | None:
    """What each attack costs and leaves, averaged over the ranked defenses that it applies to; None where none is ranked."""
    found = [(a, *_means(table.ranked, i)) for i, a in enumerate(table.attacks)]
    known = [(a, passes, left) for a, passes, left in found if passes is not None and left is not None]
    if not known:
        return None
    most = max(10.0, *(passes for _, passes, _ in known))
    least = max(1.0, min(passes for _, passes, _ in known))
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    place = linear(low, max(high, low + 1), LEFT + 12, WIDTH - RIGHT - 12)
    x = Axis(
        lambda value: place(math.log10(max(value, 10.0**low))),
        tuple((place(d), f"{10**d:,}") for d in range(low, max(high, low + 1) + 1)),
    )
    y = _percent_axis()
    return Scatter(x, y, tuple(_points(known, x.place, y.place)), len(table.ranked))


def _means(rows: Sequence[Row], column: int) -> tuple[float | None, float | None]:
    """Passes per image and robust accuracy, averaged over the rows where the attack is done."""
    done = [row.entries[column] for row in rows]
    passes = [entry.cost.passes for entry in done if entry.cost.passes is not None]
    left = [entry.value.value for entry in done if entry.value is not None]
    return (fmean(passes) if passes else None), (fmean(left) if left else None)


def _points(known: Iterable[tuple[Attack, float, float]], x: Place, y: Place) -> list[Point]:
    """Strongest attacks first: they get their labels before others take the room."""
    taken: list[tuple[float, float, float, float]] = []
    placed = sorted(known, key=lambda k: (k[2], k[1], k[0].label))
    taken += [(x(passes) - 5, y(left) - 5, x(passes) + 5, y(left) + 5) for _, passes, left in placed]
    found = []
    for attack, passes, left in placed:
        cx, cy = x(passes), y(left)
        width = CHARACTER * len(attack.label)
        label: Label | None = None
        for at, down, side in _PLACES:
            start = cx + at - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[side]
            box = (start, cy + down - LINE / 2, start + width, cy + down + LINE / 2)
            inside = start >= LEFT and start + width <= WIDTH - RIGHT and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                label = Label(cx + at, cy + down, side)
                break
        found.append(Point(attack.label, attack.access, cx, cy, passes, 100 * left, label))
    return found


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def transfers(table: Leaderboard) -> list[Transfer]:
    """One for each attack that was crafted on other defenses, with the same attack on the defense itself where it was run."""
    crafts: dict[tuple[str, ...], list[int]] = {}
    for i, attack in enumerate(table.attacks):
        if attack.surrogates:
            crafts.setdefault(attack.members, []).append(i)
    found = []
    for members, columns in sorted(crafts.items()):
        own = [i for i, attack in enumerate(table.attacks) if (attack.label,) == members]
        header = ["the defense itself"] * len(own) + [", ".join(table.attacks[i].surrogates) for i in columns]
        found.append(Transfer(" and ".join(members) or "the attack", tuple(header), (*own, *columns)))
    return found

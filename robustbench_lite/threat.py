"""Threat models: how far an attacker may move an image. Importing this module imports no torch.

A threat model is written as text, and keeps its spelling:

=============================  ==================================================================================
``linf:8/255``                 every value moves by at most 8/255
``l2:0.5``, ``l1:12``          Euclidean length, sum of absolute changes
``l0:8``                       at most 8 pixels of an (N, C, H, W) batch change, in any channel; else 8 coordinates
``union:linf:0.03+l2:0.5``     inside at least one of the parts
``unrestricted``               any image: what may be done to it is a parameter of the attack
``linf``                       no limit: what a minimal-norm attack makes as small as it can
=============================  ==================================================================================

Images live in the box [0, 1], always.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from robustbench_lite.errors import InvalidThreat, did_you_mean
from robustbench_lite.specs import BALLS, NORMS, UNRESTRICTED

if TYPE_CHECKING:
    from torch import Tensor

RELATIVE_TOLERANCE = 1e-6
ABSOLUTE_TOLERANCE = 2.0**-24  # the spacing of float32 just below 1: what rounding x + delta may add
PORTION = 1 << 22  # values of which copies in float64 are made at a time

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NO_BALLS = {"union": "not of unions", UNRESTRICTED: f"and {UNRESTRICTED} is none"}
_EXAMPLES = "write for example linf:8/255, l2:0.5, l1:12, l0:8 or union:linf:0.03+l2:0.5"


@dataclass(frozen=True)
class Threat:
    """A ball of one norm around the clean image, or a union of such balls, or no ball at all; intersected with the box [0, 1].

    norm: ``linf``, ``l2``, ``l1``, ``l0``, ``union`` or ``unrestricted``. eps: radius; ``math.inf`` where only a norm was
    given, and 1 for a union, whose sizes are in units of its parts' radii. spelling: the radius as it was written
    (``8/255``). parts: the balls of a union, in the order of ``specs.NORMS``.

    ``unrestricted`` is for attacks that rotate, blur or recolour: whether an image is another one rotated by at most 30
    degrees cannot be measured, so the core claims nothing of the kind. It checks the box; what else was allowed is for the
    attack's parameters to say. The size of a point is the root mean square of its change, which no image of the box has
    above 1, hence eps 1; -20 log10 of it is the peak signal-to-noise ratio in dB.

    Threats are equal when they allow the same points: the spelling does not count. Raises InvalidThreat.
    """

    norm: str
    eps: float
    spelling: str = field(default="", compare=False)
    parts: tuple[Threat, ...] = ()

    def __post_init__(self) -> None:
        text = str(self) if self.spelling else f"{self.norm}:{self.eps}"
        if self.norm == "union":
            parts = _checked_parts(text, self.parts)
            if self.eps != 1:
                raise InvalidThreat(f"threat {text!r}: the eps of a union is 1, not {self.eps}", hint=_EXAMPLES)
            object.__setattr__(self, "parts", parts)
            object.__setattr__(self, "spelling", self.spelling or "+".join(map(str, self.parts)))
        elif self.norm == UNRESTRICTED:
            if self.eps != 1 or self.spelling or self.parts:
                raise InvalidThreat(f"threat {text!r}: unrestricted has neither radius nor parts, and eps 1", hint=_EXAMPLES)
        else:
            _check_ball(text, self.norm, self.eps, self.parts)
            if not self.spelling and math.isfinite(self.eps):
                object.__setattr__(self, "spelling", _spell(self.eps))

    @classmethod
    def parse(cls, text: str) -> Threat:
        """Read a threat model; raises InvalidThreat, which says what is wrong and how it is written."""
        if not isinstance(text, str):
            raise InvalidThreat(f"threat {text!r}: expected text, not {type(text).__name__}", hint=_EXAMPLES)
        return _parse(text)

    def __str__(self) -> str:
        return f"{self.norm}:{self.spelling}" if self.spelling else self.norm

    @property
    def tolerance(self) -> float:
        """What ``contains`` allows beyond eps, for the rounding of x + delta to float32; 0 for l0."""
        if self.norm == "l0":
            return 0.0
        return RELATIVE_TOLERANCE * self.eps + (0.0 if self.norm == "union" else ABSOLUTE_TOLERANCE)

    @property
    def limit(self) -> float:
        """A finite point is inside exactly when its ``size`` is at most this; inf where there is no radius."""
        return self.eps + self.tolerance

    def at(self, eps: float) -> Threat:
        """The same norm with radius ``eps`` (inf for none). Raises InvalidThreat for anything but a single ball."""
        if self.norm not in BALLS:
            hint = "write the union out with the new radii" if self.norm == "union" else _EXAMPLES
            raise InvalidThreat(f"threat {str(self)!r} has no single radius to set to {eps}", hint=hint)
        return Threat(self.norm, float(eps))

    def answers(self, asked: Threat) -> bool:
        """Whether a result in this threat model says what happens in ``asked``: in the same, or its norm without a radius."""
        return self == asked or (self.norm == asked.norm and math.isinf(self.eps))

    def holds_every(self, shape: tuple[int, ...]) -> bool:
        """Whether every image of this shape (C, H, W) in [0, 1] is inside, whatever the clean one: a limit on nothing."""
        values = math.prod(shape)
        largest = {"linf": 1.0, "l2": math.sqrt(values), "l1": values, "l0": values // shape[0]}
        return any(ball.eps >= largest.get(ball.norm, math.inf) for ball in self.parts or (self,))

    def size(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """(N,) float64: how far ``x_adv`` is from ``x``, both (N, ...); inf for points that are not finite.

        For a union, the least over its parts of distance / radius: 1 on the boundary. A point within the tolerance of a part
        counts as on its boundary, so that rounding is treated alike in a union and alone. For ``unrestricted``, the root mean
        square of the change.
        """
        if x.shape != x_adv.shape:
            raise ValueError(f"x has shape {tuple(x.shape)} and x_adv {tuple(x_adv.shape)}; they must agree")
        if len(portions := in_portions(x, x_adv)) > 1:
            import torch

            return torch.cat([self.size(*portion) for portion in portions])
        delta = x_adv.double() - x
        if self.norm != "union":
            return _length(delta, self.norm)
        least = self.parts[0]._in_radii(delta)
        for part in self.parts[1:]:
            least = least.minimum(part._in_radii(delta))
        return least

    def contains(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """(N,) bool: inside the ball or union, up to the tolerance. Never true of points that are not finite.

        True of every image of the box for ``unrestricted``.
        """
        size = self.size(x, x_adv)
        return (size <= self.limit) & size.isfinite()

    def in_box(self, x_adv: Tensor) -> Tensor:
        """(N,) bool: every value finite and in [0, 1]."""
        flat = x_adv.flatten(1)
        return (flat.amin(1) >= 0) & (flat.amax(1) <= 1)  # both NaN where any value is

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """The nearest point of ball and box to each ``x_adv`` (N, ...), in Euclidean distance; points inside are kept as is.

        Exact for linf, l1 (jointly with the box) and l0. For l2 the point is scaled into the ball and then clipped to the
        box, as attacks do: inside both, and the nearest point of the ball where no value is clipped. For a union, the nearest
        of the parts' points. For ``unrestricted``, clipped to the box. ``contains`` and ``in_box`` hold of the result for every
        finite ``x_adv`` and every ``x`` in the box.
        """
        from robustbench_lite.projections import project

        return project(self, x, x_adv)

    def _in_radii(self, delta: Tensor) -> Tensor:
        length = _length(delta, self.norm)
        ratio = length / self.eps
        return ratio.where(length > self.limit, ratio.clamp(max=1.0))


def in_portions(x: Tensor, x_adv: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two cut into groups of rows, so small that copies in float64 do not matter beside the images themselves."""
    if x.numel() <= PORTION:  # what a search asks for thousands of times
        return [(x, x_adv)]
    rows = max(1, PORTION // x[0].numel())
    return [(x[i : i + rows], x_adv[i : i + rows]) for i in range(0, len(x), rows)]


def _length(delta: Tensor, norm: str) -> Tensor:
    """(N,) length of float64 ``delta`` (N, ...) in one norm; inf where it is not finite."""
    flat = delta.flatten(1)
    if norm == "linf":
        length = flat.abs().amax(1)
    elif norm == "l2":
        length = flat.square().sum(1).sqrt()
    elif norm == "l1":
        length = flat.abs().sum(1)
    elif norm == UNRESTRICTED:
        length = flat.square().sum(1).div(max(flat.shape[1], 1)).sqrt()
    else:
        changed = (delta != 0).any(1).flatten(1) if delta.dim() == 4 else flat != 0
        length = changed.sum(1).double().masked_fill(~flat.isfinite().all(1), math.inf)
    return length.nan_to_num(nan=math.inf, posinf=math.inf)


def _split_parts(text: str) -> list[str]:
    """The parts of a union; a plus sign inside a number (``1e+2``) separates nothing."""
    return re.split(r"\+(?![\d.])", text)


@cache  # every stored result names its threat model, and a store names few
def _parse(text: str) -> Threat:
    norm, colon, rest = (piece.strip() for piece in text.partition(":"))
    if norm == "union":
        pieces = [piece.strip() for piece in _split_parts(rest)] if rest else []
        balls = tuple(_parse_ball(text, piece) for piece in pieces)
        return Threat("union", 1.0, "+".join(map(str, balls)), _checked_parts(text, balls))
    if norm == UNRESTRICTED:
        if colon:
            raise InvalidThreat(f"threat {text!r}: unrestricted has no radius", hint="write it alone: unrestricted")
        return Threat(UNRESTRICTED, 1.0)
    return _parse_ball(text, norm + colon + rest)


def _parse_ball(text: str, ball: str) -> Threat:
    """One ball; ``text`` is what the person wrote, for the message."""
    norm, colon, number = (piece.strip() for piece in ball.partition(":"))
    if norm not in BALLS:
        _check_ball(text, norm, math.inf, ())
    if not colon:
        return Threat(norm, math.inf)
    eps = _parse_number(text, number)
    _check_ball(text, norm, eps, ())
    if math.isinf(eps):
        raise InvalidThreat(f"threat {text!r}: {number} is no finite number", hint=f"for no limit write the norm alone: {norm}")
    return Threat(norm, eps, re.sub(r"\s", "", number))


def _parse_number(text: str, number: str) -> float:
    pieces = [piece.strip() for piece in number.split("/")]
    if not number:
        raise InvalidThreat(f"threat {text!r}: the radius is missing", hint=_EXAMPLES)
    if number.lower().lstrip("+") in ("inf", "infinity"):
        return math.inf
    if len(pieces) > 2 or not all(_NUMBER.fullmatch(piece) for piece in pieces):
        raise InvalidThreat(f"threat {text!r}: {number!r} is neither a number nor a fraction such as 8/255", hint=_EXAMPLES)
    top, bottom = float(pieces[0]), float(pieces[1]) if len(pieces) == 2 else 1.0
    if bottom == 0:
        raise InvalidThreat(f"threat {text!r}: {number!r} divides by zero", hint=_EXAMPLES)
    return top / bottom


def _check_ball(text: str, norm: str, eps: float, parts: tuple[Threat, ...]) -> None:
    if norm not in BALLS:
        problem = f"unknown norm {norm!r}; known: {', '.join(NORMS)}" if norm else "the norm is missing"
        problem = f"a union is made of balls, {_NO_BALLS[norm]}" if norm in _NO_BALLS else problem
        near = "" if norm in NORMS else did_you_mean(norm.lower(), NORMS)
        raise InvalidThreat(f"threat {text!r}: {problem}", hint=f"{near} {_EXAMPLES}".lstrip())
    if not eps >= 0:
        raise InvalidThreat(f"threat {text!r}: the radius must be 0 or more, not {eps}", hint=_EXAMPLES)
    if norm == "l0" and math.isfinite(eps) and eps != math.floor(eps):
        problem = f"l0 counts pixels, so its radius is a whole number, not {eps}"
        raise InvalidThreat(f"threat {text!r}: {problem}", hint=f"write l0:{math.floor(eps)} or l0:{math.ceil(eps)}")
    if parts:
        raise InvalidThreat(f"threat {text!r}: only a union has parts", hint=_EXAMPLES)


def _checked_parts(text: str, parts: tuple[Threat, ...]) -> tuple[Threat, ...]:
    """The parts in the order of NORMS, so that equal unions are equal however they were written."""
    norms = [part.norm for part in parts]
    if others := [norm for norm in norms if norm in _NO_BALLS]:
        problem = f"a union is made of balls, {_NO_BALLS[others[0]]}"
    elif len(parts) < 2:
        problem = f"a union needs at least two balls, not {len(parts)}"
    elif len(set(norms)) < len(norms):
        twice = next(norm for norm in norms if norms.count(norm) > 1)
        problem = f"{twice} stands twice, and the larger ball contains the other"
    elif any(not 0 < part.eps < math.inf for part in parts):
        problem = "every ball of a union needs a radius above 0"
    else:
        return tuple(sorted(parts, key=lambda part: NORMS.index(part.norm)))
    raise InvalidThreat(f"threat {text!r}: {problem}", hint=_EXAMPLES)


def _spell(number: float) -> str:
    """The shortest text that reads back as ``number``: 8, 0.5, 1e-05."""
    return str(int(number)) if number == math.floor(number) and number < 1e15 else repr(float(number))

"""Texts that plugins and stored results bring, made safe to show; and numbers as tables show them."""

from __future__ import annotations

import math
import re
import unicodedata
from urllib.parse import quote, urlsplit

from robustbench_lite.results import MetricValue

LONGEST = 300  # characters of a reason: a traceback belongs in the store, not in a table
DASH = "–"

_ARXIV = re.compile(r"arxiv:\s*((?:\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?:v\d+)?)", re.IGNORECASE)
_DOI = re.compile(r"doi:\s*(10\.\d{4,9}/\S+)", re.IGNORECASE)
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain(text: object, longest: int = LONGEST) -> str:
    """``text`` on one line, without control, formatting and unassigned characters, cut to ``longest``.

    What goes: terminal escapes, characters that reverse the reading direction, lone surrogates that no file can hold.
    """
    blanks = "".join(" " if c.isspace() else c for c in str(text))
    shown = " ".join("".join(c for c in blanks if not unicodedata.category(c).startswith("C")).split())
    return shown if len(shown) <= longest else shown[: longest - 1].rstrip() + "…"


def link(reference: str) -> str | None:
    """The address that ``arXiv:...``, ``doi:...`` or an http(s) URL stands for; None for anything else."""
    if found := _ARXIV.fullmatch(reference):
        return f"https://arxiv.org/abs/{found[1]}"
    if found := _DOI.fullmatch(reference):
        return f"https://doi.org/{quote(found[1], safe='/:;.-_')}"
    try:
        parts = urlsplit(reference)
    except ValueError:
        return None
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname or any(c.isspace() for c in reference):
        return None
    return quote(reference, safe="/:;.,-_~?&=#%+@")


def percent(value: MetricValue | None) -> str:
    """A proportion in % with one decimal and its interval, ``71.0 [66.9, 74.8]``."""
    if value is None:
        return DASH
    interval = "" if value.low is None or value.high is None else f" [{100 * value.low:.1f}, {100 * value.high:.1f}]"
    return f"{100 * value.value:.1f}{interval}"


def length(value: MetricValue | None) -> str:
    """A size with its interval, ``0.0821 [0.0792, 0.0855]``; ``∞`` where more than half were not beaten."""
    if value is None:
        return DASH
    interval = "" if value.low is None or value.high is None else f" [{_digits(value.low)}, {_digits(value.high)}]"
    return f"{_digits(value.value)}{interval}"


def _digits(number: float) -> str:
    return "∞" if math.isinf(number) else f"{number:.3g}"


def count(number: float | None) -> str:
    """Passes per example: ``1,204``; one decimal below 10."""
    if number is None:
        return DASH
    return f"{number:,.1f}" if 0 < number < 10 else f"{number:,.0f}"


def superscript(number: int) -> str:
    """A footnote's mark, ``¹²``."""
    return str(number).translate(_SUPERSCRIPTS)

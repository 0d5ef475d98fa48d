"""Leaderboards as Markdown (GitHub's tables)."""

from __future__ import annotations

import re

from tabulate import tabulate

from robustbench_lite.leaderboard.layout import (
    ABOUT_PUBLISHED,
    PUBLISHED,
    Footnotes,
    Grid,
    apart_grid,
    facts,
    legend,
    main_grid,
    measure_grids,
    median_grid,
    member_grids,
    published_grid,
)
from robustbench_lite.leaderboard.model import Leaderboard
from robustbench_lite.leaderboard.text import link, plain

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$!])")


def render(table: Leaderboard, *, command: str = "rbl report") -> str:
    """The table with its facts, footnotes and legend. command: what makes it again."""
    notes = Footnotes()
    main, apart = main_grid(table, escape, notes, _reference), apart_grid(table, escape, notes, _reference)
    further = measure_grids(table.measures, escape, notes)
    published = published_grid(table.published, escape, notes, _reference)
    blocks = [
        f"# {escape(table.title)}",
        "\n".join(f"- {name}: {escape(text)}" for name, text in facts(table)) + f"\n- made by: {code(command)}",
        _pipes(main) if main.rows else "",
        f"Not ranked:\n\n{_pipes(apart)}" if apart.rows else "",
        "\n".join(f"{i}. {escape(text)}" for i, text in enumerate(notes.texts, 1)),
    ]
    if medians := median_grid(table, escape):
        blocks += [
            f"Median smallest perturbation ({table.threat.norm}) that minimal-norm attacks found, over the examples classified "
            "correctly, with 95 % bootstrap intervals:",
            _pipes(medians),
        ]
    for label, grid in member_grids(table, escape):
        blocks += [f"Examples that each member of {escape(label)} beat:", _pipes(grid)]
    if further:
        blocks += ["Further metrics, which rank nothing:", *map(_pipes, further)]
    if published:
        blocks += [f"{PUBLISHED}:", _pipes(published), ABOUT_PUBLISHED]
    blocks.append("\n".join(f"- {line}" for line in legend(table)))
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape(text: str) -> str:
    """``text`` so that Markdown shows it as it is: no table cell, link, code, math, emphasis or HTML begins in it."""
    safe = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", safe)


def code(text: str) -> str:
    """``text`` as a code span, whatever backticks it holds."""
    shown = plain(text, longest=2000)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    padding = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def _reference(reference: str) -> str:
    address = link(reference)
    return f"[{escape(reference)}]({address})" if address else escape(reference)


def _pipes(grid: Grid) -> str:
    alignment = ["right" if numeric else "left" for numeric in grid.numeric]
    return tabulate(grid.rows, headers=grid.header, tablefmt="pipe", colalign=alignment, disable_numparse=True)

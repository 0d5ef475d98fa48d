"""Leaderboards for a terminal, by rich."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robustbench_lite.leaderboard.layout import Footnotes, Grid, facts, legend, main_grid, median_grid
from robustbench_lite.leaderboard.model import Leaderboard
from robustbench_lite.leaderboard.text import plain


def render(table: Leaderboard) -> Group:
    """What ``rich.console.Console.print`` shows: title, table, footnotes and legend."""
    notes = Footnotes()
    said = dict(facts(table))
    title = plain(f"{table.title}: {said['protocol']}, {said['examples']}")
    blocks: list[RenderableType] = [_table(main_grid(table, plain, notes), title)]
    blocks += [Text(f"{i}. {text}") for i, text in enumerate(notes.texts, 1)]
    if medians := median_grid(table, plain):
        blocks.append(_table(medians, f"Median smallest perturbation ({table.threat.norm}), 95 % bootstrap intervals"))
    blocks += [Text(line, style="dim") for line in legend(table)]
    return Group(*blocks)


def _table(grid: Grid, title: str) -> Table:
    shown = Table(title=Text(title), title_justify="left")
    for name, numeric in zip(grid.header, grid.numeric, strict=True):
        shown.add_column(Text(name), justify="right" if numeric else "left")
    for row in grid.rows:  # Text: no markup is read out of a plugin's words; intervals go below their values
        cells = [cell.replace(" [", "\n[") if numeric else cell for cell, numeric in zip(row, grid.numeric, strict=True)]
        shown.add_row(*map(Text, cells))
    return shown

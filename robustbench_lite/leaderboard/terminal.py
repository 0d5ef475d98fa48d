"""Leaderboards for a terminal, by rich. A table that is too wide goes on below, with rank and defense repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

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
from robustbench_lite.leaderboard.text import plain

_FRAME = 3  # columns that rich adds to each cell: blank, blank, line


def render(table: Leaderboard) -> _Rendered:
    """What ``rich.console.Console.print`` shows of a leaderboard: title, table, footnotes and legend."""
    return _Rendered(table)


@dataclass(frozen=True)
class _Rendered:
    """Knows the console's width only when it is printed."""

    table: Leaderboard

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        notes = Footnotes()
        said = dict(facts(self.table))
        yield Text(plain(f"{self.table.title}: {said['protocol']}, {said['examples']}"), style="bold")
        if self.table.ranked:
            yield from _tables(main_grid(self.table, plain, notes), options.max_width, fixed=2)
        if self.table.unranked:
            yield Text("Not ranked", style="bold")
            yield from _tables(apart_grid(self.table, plain, notes), options.max_width, fixed=1)
        further = measure_grids(self.table.measures, plain, notes)
        published = published_grid(self.table.published, plain, notes)
        yield from (Text(f"{i}. {text}") for i, text in enumerate(notes.texts, 1))
        if medians := median_grid(self.table, plain):
            yield Text(f"Median smallest perturbation ({self.table.threat.norm}), 95 % bootstrap intervals", style="bold")
            yield from _tables(medians, options.max_width, fixed=1)
        for label, grid in member_grids(self.table, plain):
            yield Text(f"Examples that each member of {plain(label)} beat", style="bold")
            yield from _tables(grid, options.max_width, fixed=1)
        if further:
            yield Text("Further metrics, which rank nothing", style="bold")
        for grid in further:
            yield from _tables(grid, options.max_width, fixed=1)
        if published:
            yield Text(PUBLISHED, style="bold")
            yield from _tables(published, options.max_width, fixed=1)
            yield Text(ABOUT_PUBLISHED, style="dim")
        yield from (Text(line, style="dim") for line in legend(self.table))


def _tables(grid: Grid, width: int, *, fixed: int) -> Iterator[Table]:
    """The grid as one table, or several that fit ``width``, each with the first ``fixed`` columns."""
    columns = [[name, *cells] for name, *cells in zip(grid.header, *grid.rows, strict=True)]
    # Intervals go below their values.
    columns = [[c.replace(" [", "\n[") for c in column] if grid.numeric[i] else column for i, column in enumerate(columns)]
    widths = [_FRAME + max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
    chosen = list(range(fixed))
    for i in range(fixed, len(columns)):
        if len(chosen) > fixed and 1 + sum(widths[c] for c in [*chosen, i]) > width:
            yield _table(columns, grid.numeric, chosen)
            chosen = list(range(fixed))
        chosen.append(i)
    yield _table(columns, grid.numeric, chosen)


def _table(columns: list[list[str]], numeric: list[bool], chosen: list[int]) -> Table:
    shown = Table()
    for i in chosen:  # Text: no markup is read out of a plugin's words
        shown.add_column(Text(columns[i][0]), justify="right" if numeric[i] else "left", overflow="fold")
    for cells in zip(*(columns[i][1:] for i in chosen), strict=True):
        shown.add_row(*map(Text, cells))
    return shown

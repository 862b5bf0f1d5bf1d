"""The table of a sweep for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from striate.artifacts import SweepRecord
from striate.cli.views.narrow_tables import fitting, width_of
from striate.reporting.sweep_rows import cells, columns, numbered
from striate.reporting.sweep_wording import COMPARED, legend, score_heads, scores_told

BEST = "*"
_MODEL = "model"


def sweep_lines(record: SweepRecord, width: int) -> Iterator[Table | str]:
    """Yield the table, in parts where it is wide, and what its names and marks mean.

    What varies and the model stand before every part of a table that is too wide. Where that alone takes more than half
    of `width` characters, rows have numbers, and what varies is told below.
    """
    shown, lines = sweep_table(record), legend(record, BEST)
    if width_of(shown.columns) > width and width_of(shown.columns[: _keep(shown)]) > width // 2:
        record, numbers = numbered(record)
        shown, lines = sweep_table(record), [*numbers, *lines]
    yield from fitting(shown, width, _keep(shown))
    yield from lines


def _keep(table: Table) -> int:
    return [column.header for column in table.columns].index(_MODEL) + 1


def sweep_table(record: SweepRecord) -> Table:
    """Return a row a group of runs: its settings, scores over seeds, and what they keep."""
    shown = Table(box=None, pad_edge=False)
    named = columns(record)
    for name in named.values():
        shown.add_column(name)
    heads = score_heads(record)
    for head in (_MODEL, "seeds", *heads, "seconds"):
        shown.add_column(head, justify="left" if head == _MODEL else "right")
    for group in record.groups:
        marked = f"{group.model}{f' {BEST}' if group.best else ''}{f' {COMPARED}' if group.compared else ''}"
        seconds = "" if group.train_seconds is None else f"{group.train_seconds:.0f}"
        shown.add_row(*cells(group, named), marked, str(len(group.seeds)), *scores_told(group, heads), seconds)
    return shown

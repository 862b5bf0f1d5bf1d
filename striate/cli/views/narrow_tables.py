"""A table that is wider than the terminal, as several narrow ones, one below the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.table import Column, Table

_GAP = 2


def fitting(table: Table, width: int, keep: int = 1) -> Iterator[Table]:
    """Yield `table`, or where `width` characters are too few its parts, whose rows start with the first `keep` columns.

    Cells are texts. No part is wider than `width`, unless `keep` columns and one more are.
    """
    head, rest = list(table.columns[:keep]), list(table.columns[keep:])
    part: list[Column] = []
    title = table.title
    for column in rest:
        if part and width_of([*head, *part, column]) > width:
            yield _of(table, [*head, *part], title)
            part, title = [], None
        part.append(column)
    yield _of(table, [*head, *part], title)


def width_of(columns: Sequence[Column]) -> int:
    """Return the characters of a table of these columns whose heads and cells are not broken."""
    return sum(_width(column) + _GAP for column in columns) - _GAP


def _width(column: Column) -> int:
    return max(cell_len(str(text)) for text in (column.header, *column.cells))


def _of(table: Table, columns: Sequence[Column], title: object) -> Table:
    """Return a table of some columns of another one, with rows in its styles."""
    part = Table(title=str(title) if title else None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        part.add_column(column.header, justify=column.justify, overflow="fold", min_width=_width(column))
    cells = [list(column.cells) for column in columns]
    for number, row in enumerate(table.rows):
        part.add_row(*(column[number] for column in cells), style=row.style)
    return part

"""The names that data has for its fields, changed into striate's own (`data.columns`). No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from striate.data.rows import Row
from striate.errors import did_you_mean
from striate.printable import shown

_ASKED = "what is asked of every record is data.question, not the name of a column; or "


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """Return the record with its fields under striate's names; one that has none of the columns as it is.

    Args:
        row: the record.
        columns: striate's name to the record's own.

    Raises:
        StriateError: it has some of the columns and lacks others.
    """
    there = [column for column in columns.values() if column in row.fields]
    if not there:
        return row
    for name, column in columns.items():
        if column not in row.fields:
            have = [key for key in row.fields if isinstance(key, str)]
            raise row.refuse(
                f"no column {shown(column)}, which data.columns says is {name!r}",
                f"one of {', '.join(shown(key, 30) for key in have[:20])}",
                f"{did_you_mean(column, have)}{_ASKED if name == 'question' else ''}"
                "change data.columns; a column without a value may be empty or null",
            )
    taken = {*columns.values(), *columns}
    rest: dict[Any, Any] = {key: value for key, value in row.fields.items() if key not in taken}
    return Row({**rest, **{name: row.fields[column] for name, column in columns.items()}}, row.place, row.form)

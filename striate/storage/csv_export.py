"""Tables for other programs: no text in a cell that a spreadsheet would run, and no file replaced unasked."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from striate.errors import ConfigError

_FORMULA = re.compile(r"\s*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a CSV table; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([_cell(value) for value in row] for row in (header, *rows))
    return stream.getvalue()


def check_new_file(path: Path, overwrite: bool) -> None:
    """Check that `path` may be written: it is new, or `overwrite` is given.

    Raises:
        ConfigError: it is there already.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigError(
            f"can't export to {path}: it exists already",
            "a new file",
            "choose another name" if path.is_dir() else "choose another name, or use --overwrite",
        )


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # The writer leaves a lone carriage return outside quotes, where it begins a row.
    text = f"'{value}" if _FORMULA.match(value) and not _NUMBER.fullmatch(value) else value
    return text.replace("\r\n", "\n").replace("\r", "\n")

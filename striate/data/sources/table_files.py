"""Records of .csv and .tsv tables: a header, and a text for each cell; what is blank is absent. No torch."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from striate.data.picture_names import MEDIA_FILE
from striate.data.sources.records import TRAINING_FILE, Record
from striate.errors import DataError
from striate.printable import shown

# A line that spreadsheets write before the header.
_SEPARATOR = re.compile(r"\"?sep=([,;|\t])\"?\r?\n?", re.IGNORECASE)
_ALLOWED = "a table in UTF-8 with a header and as many cells in every row, separated by commas (.csv) or tabs (.tsv)"


def table_records(file: Path) -> Iterator[Record]:
    """Yield each row of a table by the names in its header, a few in memory at a time.

    Rows of blank cells are passed over. A .csv of which the header has tabs or semicolons and no comma is separated by
    those, as some spreadsheets write it, or by what a first line such as sep=; says.

    Raises:
        DataError: it can't be read, has no header or one that names a column twice, or a row of another length.
    """
    # Pictures may be cells of many megabytes.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            said = _SEPARATOR.fullmatch(first)
            if not said:
                stream.seek(0)
            reader = csv.reader(stream, delimiter=said[1] if said else _delimiter(file, first), strict=True)
            header = _header(next(reader, []), file)
            for number, cells in enumerate(reader, start=1):
                if any(map(str.strip, cells)):
                    where = f"line {reader.line_num + bool(said)}"
                    yield Record(where, number, _row(header, cells, f"{file}: {where}"))
    except UnicodeDecodeError as error:
        raise TRAINING_FILE.refuse(
            f"{file} is not UTF-8 text: byte {error.start}", "save it as CSV in UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(f"{file} is no table: {error}", _ALLOWED, "check its quotes, or save it again") from error
    except OSError as error:
        raise TRAINING_FILE.refuse(f"can't read {file}: {error.strerror or error}", "check the path") from error


def _delimiter(file: Path, header: str) -> str:
    if file.suffix.lower() == ".tsv":
        return "\t"
    return "," if "," in header else next((mark for mark in "\t;" if mark in header), ",")


def _header(cells: list[str], file: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not any(names):
        raise DataError(f"{file} has no header", _ALLOWED, "name the columns in its first line")
    if named := next(filter(MEDIA_FILE.fullmatch, names), ""):
        raise DataError(
            f"{file} has no header: its first line names a file, {shown(named)}",
            _ALLOWED,
            "name the columns in a line before it, such as file,label",
        )
    if len(names) == 1 and (mark := next((mark for mark in ",;|" if mark in names[0]), "")):
        raise DataError(
            f"{file} has one column, {shown(names[0])}: its columns are separated by {shown(mark)}",
            _ALLOWED,
            "save it again with commas or tabs, under the ending of those",
        )
    # Columns without a name are passed over, as spreadsheets leave some behind.
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file} names two columns {shown(twice)}", "a header of different names", "rename one of them")
    return names


def _row(header: list[str], cells: list[str], place: str) -> dict[str, str | None]:
    if len(cells) != len(header):
        raise DataError(
            f"{place} has {len(cells)} cells, and the header {len(header)}",
            _ALLOWED,
            "fix that row; a cell with a comma in it is written in double quotes",
        )
    return {name: cell if cell.strip() else None for name, cell in zip(header, cells, strict=True)}

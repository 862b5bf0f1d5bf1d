"""Read a local copy of a benchmark's files, with errors that name what is missing."""

import csv
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from striate.data.rows import Row
from striate.errors import DataError
from striate.printable import shown
from striate.storage.inside import inside
from striate.storage.read_files import Form, json_lines, read_json, read_text


@dataclass(frozen=True)
class Release:
    """The folder of one benchmark.

    Attributes:
        name: the benchmark's registered name, also the name of its items' pack.
        folder: where its files are.
        layout: the files that are expected there, for errors.
        source: where they come from, for errors.
        unpacked: where pictures are written that are stored inside other files.
        shots: number of few-shot examples before a question.
    """

    name: str
    folder: Path
    layout: tuple[str, ...]
    source: str
    unpacked: Path
    shots: int = 0

    def find(self, *patterns: str) -> Path:
        """Return the first file that matches one of the glob patterns, tried in order.

        Raises:
            DataError: there is none.
        """
        return self.find_all(*patterns)[0]

    def find_all(self, *patterns: str) -> list[Path]:
        """Return the files that match the first of the glob patterns that matches any, sorted by name.

        Raises:
            DataError: none matches, or the folder is missing.
        """
        for pattern in patterns:
            files = sorted(path for path in self.folder.glob(pattern) if path.is_file())
            if files:
                return files
        missing = "is not a folder" if not self.folder.is_dir() else f"has no {' or '.join(patterns)}"
        raise DataError(
            f"benchmark {self.name}: {self.folder} {missing}",
            f"the published files: {', '.join(self.layout)}",
            f"they come from {self.source}",
        )

    def place(self, *folders: str) -> Path:
        """Return the first of the subfolders that exists, or the first one: pictures are checked when chosen."""
        candidates = [self.folder / folder for folder in folders]
        return next((path for path in candidates if path.is_dir()), candidates[0])

    def picture(self, row: Row, folder: Path, *parts: str) -> Path:
        """Return the path of a picture that `row` names, in one of this benchmark's folders.

        Raises:
            DataError: it lies outside that folder.
        """
        return inside(folder, *parts, what=f"{row.place}: picture", kind=f"folder {folder.name}")

    def read(self, file: Path) -> str:
        """Return the text of `file`.

        Raises:
            DataError: it can't be read, or is no UTF-8 text.
        """
        return read_text(file, self.form)

    def document(self, file: Path) -> Row:
        """Return the JSON object that `file` holds; raises as `read`, and where it is not JSON."""
        return self.row(read_json(file, self.form), str(file))

    def lines(self, file: Path) -> Iterator[Row]:
        """Yield the object of every line of JSON lines; raises as `document`."""
        for number, value in json_lines(file, self.form):
            yield self.row(value, f"{file}:{number}")

    def table(self, file: Path, columns: tuple[str, ...] = (), delimiter: str = ",") -> Iterator[Row]:
        """Yield the rows of a table, streamed, by column names in lower case.

        Args:
            file: with a header, unless `columns` are given.
            columns: the names of the columns, where the file has no header.
            delimiter: between two cells.

        Raises:
            DataError: it can't be read, or a row has too few cells.
        """
        # Pictures are single cells of many megabytes.
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        try:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream, fieldnames=columns or None, delimiter=delimiter)
                for cells in reader:
                    place = f"{file}:{reader.line_num}"
                    if any(value is None for value in cells.values()):
                        raise self.damaged(place, f"has too few cells: {shown(cells)}")
                    yield self.row({name.lower(): cell for name, cell in cells.items() if name}, place)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise self.damaged(file, f"can't be read as a table: {error}") from error

    def row(self, value: Any, place: str) -> Row:
        """Return a record of a file, which must be an object; `place` names it in errors."""
        if not isinstance(value, dict):
            raise self.damaged(place, f"holds {type(value).__name__}, not an object")
        return Row(value, f"benchmark {self.name}: {place}", self.form, published=True)

    def other(self, row: Row, key: str, table: Mapping[str, Row], file: Path) -> Row:
        """Return the record that `row` names under `key`; `table` has those of `file` by id.

        Raises:
            DataError: there is none.
        """
        name = row.text(key)
        if name not in table:
            raise row.refuse(f"{key!r} is {shown(name)}, but {file} has no such record")
        return table[name]

    def damaged(self, place: Path | str, what: str) -> DataError:
        """Return the error for a file that is not as it was published."""
        return DataError(f"benchmark {self.name}: {place} {what}", self.form.allowed, self.form.next_step)

    @property
    def form(self) -> Form:
        """What its files should be, for errors."""
        return Form(
            DataError,
            f"the published files of benchmark {self.name}: {', '.join(self.layout)}",
            f"fetch it again from {self.source}; docs/evaluation.md shows the layout",
        )

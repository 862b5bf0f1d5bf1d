"""Read a local copy of a benchmark's files, with errors that name what is missing."""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from striate.errors import DataError
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

    def picture(self, folder: Path, *parts: str) -> Path:
        """Return the path of a picture that a file of this benchmark names, in one of its folders.

        Raises:
            DataError: it lies outside that folder.
        """
        return inside(folder, *parts, what=f"benchmark {self.name}: picture", kind=f"folder {folder}")

    def json(self, file: Path) -> Any:
        """Return the JSON value that `file` holds.

        Raises:
            DataError: it can't be read, or is not JSON.
        """
        return read_json(file, self.form)

    def read(self, file: Path) -> str:
        """Return the text of `file`; raises a DataError as `json`."""
        return read_text(file, self.form)

    def lines(self, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the place and object of every line of JSON lines."""
        for number, value in json_lines(file, self.form):
            yield f"{file}:{number}", self.object(value, f"{file}:{number}")

    def table(self, file: Path, columns: tuple[str, ...] = (), delimiter: str = ",") -> Iterator[dict[str, str]]:
        """Yield the rows of a table, streamed; `columns` names them where the file has no header.

        Raises:
            DataError: it can't be read, or a row has too few cells.
        """
        # Pictures are single cells of many megabytes.
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        try:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                for row in csv.DictReader(stream, fieldnames=columns or None, delimiter=delimiter):
                    if any(value is None for value in row.values()):
                        raise self.damaged(file, f"has too few cells in a row: {str(row)[:120]}")
                    yield row
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise self.damaged(file, f"can't be read as a table: {error}") from error

    def object(self, value: Any, place: str) -> dict[str, Any]:
        """Return `value`, which must be a JSON object."""
        if not isinstance(value, dict):
            raise self.damaged(place, f"holds {type(value).__name__}, not an object")
        return value

    def rows(self, value: Any, key: str, file: Path) -> list[dict[str, Any]]:
        """Return the list of objects under `key` of a JSON object."""
        listed = self.object(value, str(file)).get(key)
        if not isinstance(listed, list):
            raise self.damaged(file, f"has no list under {key!r}")
        return [self.object(row, f"{file}, {key}[{index}]") for index, row in enumerate(listed)]

    def field(self, row: dict[str, Any], key: str, place: Path | str) -> Any:
        """Return what `row` has under `key`, which must be there."""
        if key not in row or row[key] is None:
            raise self.damaged(place, f"has a row without {key!r}: {str(row)[:120]}")
        return row[key]

    def text(self, row: dict[str, Any], key: str, place: Path | str) -> str:
        """Return what `row` has under `key`, as trimmed text."""
        return str(self.field(row, key, place)).strip()

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

"""Records of .json lists and .jsonl lines. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from striate.data.sources.records import FORMATS, TRAINING_FILE, Record
from striate.errors import DataError
from striate.storage.json_stream import NotAListError, streamed_items, streamed_lines
from striate.storage.read_files import read_json


def list_records(file: Path) -> Iterator[Record]:
    """Yield each record of a .json list, one in memory at a time.

    Raises:
        DataError: it can't be read, or is no JSON list.
    """
    try:
        for index, record in enumerate(streamed_items(file, TRAINING_FILE)):
            yield Record(f"sample number {index}", index, record)
    except NotAListError as error:
        kind = type(read_json(file, TRAINING_FILE)).__name__
        raise DataError(f"{file} holds one JSON {kind}, not a list", FORMATS, "wrap it in [ ]") from error


def line_records(file: Path) -> Iterator[Record]:
    """Yield each record of a .jsonl file by its line; raises as `list_records`."""
    return (Record(f"line {number}", number, value) for number, value in streamed_lines(file, TRAINING_FILE))

"""Records of .json lists and .jsonl lines. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from striate.data.sources.records import FORMATS, TRAINING_FILE, Record
from striate.errors import DataError
from striate.storage.read_files import json_lines, read_json


def list_records(file: Path) -> Iterator[Record]:
    """Yield each record of a .json list.

    Raises:
        DataError: it can't be read, or is no JSON list.
    """
    records = read_json(file, TRAINING_FILE)
    if not isinstance(records, list):
        raise DataError(f"{file} holds one JSON {type(records).__name__}, not a list", FORMATS, "wrap it in [ ]")
    for index, record in enumerate(records):
        yield Record(f"sample number {index}", index, record)


def line_records(file: Path) -> Iterator[Record]:
    """Yield each record of a .jsonl file by its line; raises as `list_records`."""
    return (Record(f"line {number}", number, value) for number, value in json_lines(file, TRAINING_FILE))

"""Records of .json lists and .jsonl lines. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from striate.data.sources.records import FORMATS, TRAINING_FILE, Record
from striate.errors import DataError
from striate.printable import shown
from striate.storage.json_stream import NotAListError, streamed_items, streamed_lines
from striate.storage.read_files import read_json

_LINES = "one JSON object a line in a .jsonl file, a list of them in a .json file"
# What a turn of a sample has, by any of its forms.
_TURN = frozenset({"role", "from", "user"})


def list_records(file: Path) -> Iterator[Record]:
    """Yield each record of a .json list, one in memory at a time.

    Raises:
        DataError: it can't be read, or is no JSON list.
    """
    try:
        for index, record in enumerate(streamed_items(file, TRAINING_FILE)):
            yield Record(f"sample number {index}", index, record)
    except NotAListError as error:
        raise _not_a_list(file) from error


def line_records(file: Path) -> Iterator[Record]:
    """Yield each record of a .jsonl file by its line; raises as `list_records`."""
    named = f"rename it {file.stem}.json, or write each sample on one line"
    try:
        for number, value in streamed_lines(file, TRAINING_FILE):
            if number == 1 and isinstance(value, list) and value and isinstance(value[0], dict):
                raise DataError(f"{file} holds a JSON list", _LINES, named)
            yield Record(f"line {number}", number, value)
    except DataError as error:
        if _is_spread(file):
            raise DataError(f"{file} holds JSON that goes over several lines", _LINES, named) from error
        raise


def _not_a_list(file: Path) -> DataError:
    """Return the error for a .json file that is no list, after what it is instead; raises it if it is no JSON."""
    with suppress(DataError):
        if len(list(islice(streamed_lines(file, TRAINING_FILE), 2))) == 2:
            return DataError(f"{file} holds one JSON value a line", _LINES, f"rename it {file.stem}.jsonl")
    value = read_json(file, TRAINING_FILE)
    return DataError(f"{file} holds one JSON {type(value).__name__}, not a list", FORMATS, _within(value))


def _within(value: Any) -> str:
    """Return what to do about a JSON value that is no list, and may hold one."""
    for key, part in value.items() if isinstance(value, dict) else ():
        if isinstance(part, list) and part and isinstance(part[0], dict) and _TURN.isdisjoint(part[0]):
            return f"write the list under {shown(key)} as a file of its own"
    if isinstance(value, dict) and value and all(isinstance(part, dict) for part in value.values()):
        return "write one object a sample, in a list; in pandas: to_json(..., orient='records')"
    return "wrap it in [ ]"


def _is_spread(file: Path) -> bool:
    """Return whether the first line only opens a value, as JSON that is written for people to read has it."""
    with suppress(OSError), file.open("rb") as stream:
        return stream.readline(2**10).strip() in (b"{", b"[")
    return False

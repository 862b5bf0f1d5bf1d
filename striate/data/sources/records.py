"""What every reader of a file of training data yields: one record after the other, with its place. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from striate.errors import DataError
from striate.storage.read_files import Form

FORMATS = (
    "a file that ends in .json, .jsonl, .csv, .tsv, .parquet, .arrow or .tar, a folder with such files of one kind, or"
    " hf:owner/name; docs/data.md shows the forms of a sample"
)
TRAINING_FILE = Form(DataError, FORMATS)


class Record(NamedTuple):
    """One record: where it stands in its file, in words; its number; and what it holds."""

    where: str
    number: int
    value: Any


ReadRecords = Callable[[Path], Iterator[Record]]

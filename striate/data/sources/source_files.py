"""Which files are read of a place that holds training data, and by which reader. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from striate.data.sources.json_files import line_records, list_records
from striate.data.sources.records import FORMATS, ReadRecords
from striate.errors import DataError

TRAIN_FILES = ("train.json", "train.jsonl")
READERS: dict[str, ReadRecords] = {".json": list_records, ".jsonl": line_records}


@dataclass(frozen=True)
class SourceFiles:
    """The files of one source, all of one kind, in order; and the folder in which the pictures that they name lie."""

    files: tuple[Path, ...]
    folder: Path

    @property
    def read(self) -> ReadRecords:
        """What reads each of the files."""
        return READERS[self.files[0].suffix]


def source_files(path: Path) -> SourceFiles:
    """Return the files that are read of `path`: itself, or those of the folder that hold training data.

    Raises:
        DataError: there are none.
    """
    if path.is_dir():
        files = [path / name for name in TRAIN_FILES if (path / name).is_file()]
        if not files:
            raise DataError(f"folder {path} has no training file", " or ".join(TRAIN_FILES), "name the file itself")
        return SourceFiles((files[0],), path)
    if not path.is_file():
        raise DataError(f"no such file: {path}", FORMATS, "check the path where the config names it")
    if path.suffix not in READERS:
        raise DataError(f"{path} is neither .json nor .jsonl", FORMATS, "rename or convert it")
    return SourceFiles((path,), path.parent)

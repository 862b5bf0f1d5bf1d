"""Which files are read of a place that holds training data, and by which reader. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from striate.data.sources.arrow_files import arrow_records, parquet_records
from striate.data.sources.hub import PREFIX, fetch_hub_data, is_hub
from striate.data.sources.json_records import line_records, list_records
from striate.data.sources.records import FORMATS, TRAINING_FILE, ReadRecords
from striate.data.sources.table_files import table_records
from striate.data.sources.tar_files import tar_records
from striate.errors import DataError
from striate.printable import shown
from striate.storage.inside import inside
from striate.storage.read_files import read_object

READERS: dict[str, ReadRecords] = {
    ".json": list_records,
    ".jsonl": line_records,
    ".csv": table_records,
    ".tsv": table_records,
    ".parquet": parquet_records,
    ".arrow": arrow_records,
    ".tar": tar_records,
}
TRAIN_FILES = ("train.json", "train.jsonl")
# Files that other programs split one data set into.
_SHARDED = ((".parquet",), (".arrow",), (".tar",))
_PART = re.compile(r"(.*?)(\d{1,9})-of-(\d{1,9})(?:-[0-9a-f]+)?")
_OTHER_SPLIT = re.compile(r"(?:^|[-_.])(?:test|val|valid|validation|dev|eval)(?:[-_.]|$)", re.IGNORECASE)
# What `datasets.save_to_disk` writes beside the Arrow files.
_STATE, _SPLITS, _INFO = "state.json", "dataset_dict.json", "dataset_info.json"
_ADVICE = {
    ".xlsx": "save it as CSV in UTF-8",
    ".xls": "save it as CSV in UTF-8",
    ".gz": "unpack it (gunzip)",
    ".tgz": "unpack it to a .tar (gunzip)",
    ".zip": "unpack it, and name the folder or the file in it",
    ".zst": "unpack it (zstd -d)",
    ".yaml": "write it as JSON lines",
    ".pkl": "write it as JSON lines: what is pickled may run programs, and is never opened",
    ".txt": "write it as JSON lines, one sample a line",
}


@dataclass(frozen=True)
class SourceFiles:
    """The files of one source, all of one kind, in order; and the folder in which the pictures that they name lie."""

    files: tuple[Path, ...]
    folder: Path

    @property
    def read(self) -> ReadRecords:
        """What reads each of the files."""
        return READERS[self.files[0].suffix.lower()]


def source_files(path: Path) -> SourceFiles:
    """Return the files that are read of `path`: itself, those of the folder that hold training data, or of the hub.

    Raises:
        DataError: there are none, or it is not clear which.
    """
    if is_hub(path):
        return SourceFiles(*fetch_hub_data(str(path)))
    if path.is_dir():
        return SourceFiles(_of_folder(path), path)
    if not path.is_file():
        hub = f"; a data set of the hub is named {PREFIX}owner/name" if str(path).count("/") == 1 else ""
        raise DataError(f"no such file: {path}", FORMATS, f"check the path{hub}")
    if path.suffix.lower() not in READERS:
        advice = _ADVICE.get(path.suffix.lower(), "convert it to JSON lines, such as docs/data.md shows")
        raise DataError(f"{path} ends in {shown(path.suffix)}, which is not read", FORMATS, advice)
    return SourceFiles((path,), path.parent)


def _of_folder(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder that hold training data."""
    for name in TRAIN_FILES:
        if (folder / name).is_file():
            return (folder / name,)
    if (folder / _SPLITS).is_file():
        return _of_splits(folder)
    if (folder / _STATE).is_file():
        return _saved(folder)
    for ending in READERS:
        for files in ([folder / f"train{ending}"], _shards(folder, ending), _shards(folder / "data", ending)):
            there = tuple(file for file in files if file.is_file())
            if there:
                return _whole(there)
    return _only_kind(folder)


def _shards(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.glob(f"train[-_.]*{ending}"))


def _whole(files: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return the files, where their names do not say that there are more, such as train-00001-of-00003."""
    parts: dict[tuple[str, str], set[str]] = {}
    for found in filter(None, (_PART.fullmatch(file.stem) for file in files)):
        parts.setdefault((found[1], found[3]), set()).add(found[2])
    for (name, total), there in parts.items():
        if len(there) < int(total):
            whole = shown(f"{name}...-of-{total}", 60)
            raise DataError(
                f"folder {files[0].parent} has {len(there)} of the {int(total)} files {whole}",
                "all files of a data set",
                "fetch the others, or name those that are there under data.train",
            )
    return files


def _only_kind(folder: Path) -> tuple[Path, ...]:
    """Return the folder's one file of data, or all of them where they are of a kind that is written in parts."""
    inner = sorted(file for file in folder.iterdir() if file.suffix.lower() in READERS and file.is_file())
    # Hidden ones are of the system, such as a Mac's ._labels.csv.
    seen = [file for file in inner if not file.name.startswith(".")]
    files = [file for file in seen if not _OTHER_SPLIT.search(file.stem) and file.name != _INFO]
    kinds = tuple({file.suffix.lower() for file in files})
    if len(files) == 1 or kinds in _SHARDED:
        return _whole(tuple(files))
    names = ", ".join(shown(file.name, 40) for file in files[:5])
    if files:
        raise DataError(
            f"folder {folder} has {len(files)} files that may be its training data: {names}",
            "train.json, train.jsonl, or one file of data",
            "name the file itself, or list several under data.train",
        )
    raise DataError(
        f"folder {folder} has no training file",
        f"train.json, train.jsonl, or one file that ends in {', '.join(READERS)}",
        "name another folder; for photos write a table of their names and answers, see docs/data.md",
    )


def _of_splits(folder: Path) -> tuple[Path, ...]:
    """Return the files of the split `train` that `DatasetDict.save_to_disk` wrote."""
    splits = read_object(folder / _SPLITS, TRAINING_FILE).get("splits")
    if (folder / "train" / _STATE).is_file():
        return _saved(folder / "train")
    raise DataError(
        f"folder {folder} holds the splits {shown(splits)}, and no train",
        "a split to train on",
        f"name it: {folder}/SPLIT",
    )


def _saved(folder: Path) -> tuple[Path, ...]:
    """Return the Arrow files that `Dataset.save_to_disk` wrote, in their order."""
    listed = read_object(folder / _STATE, TRAINING_FILE).get("_data_files")
    rows = listed if isinstance(listed, list) else []
    names = [row.get("filename") if isinstance(row, dict) else None for row in rows]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise TRAINING_FILE.refuse(f"{folder / _STATE} names no files", "save the data set again")
    files = tuple(inside(folder, name, what=f"{folder / _STATE}: file") for name in names if isinstance(name, str))
    missing = next((file for file in files if not file.is_file() or file.suffix != ".arrow"), None)
    if missing is not None:
        raise TRAINING_FILE.refuse(f"{folder / _STATE} names {shown(missing.name)}, which is no Arrow file there")
    return files

"""Reads training files: LLaVA `conversations` and chat `messages`, as .json or .jsonl, each sample checked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from striate.data.parsing import ImageFolder, parse_sample
from striate.data.samples import Sample
from striate.errors import DataError
from striate.storage.read_files import Form, json_lines, read_json

TRAIN_FILES = ("train.json", "train.jsonl")
FORMATS = "a .json list or .jsonl lines of samples with `conversations` (LLaVA) or `messages` (chat)"
TRAINING_FILE = Form(DataError, FORMATS)


def read_samples(path: Path, limit: int | None = None) -> list[Sample]:
    """Return the samples of `path` in file order, the first `limit` of them if that is given.

    Args:
        path: a .json or .jsonl file, or a folder that holds train.json or train.jsonl.
        limit: how many samples to read; None reads all.

    Raises:
        DataError: a missing, damaged or empty file, or a bad sample; names the file and the sample or line.
    """
    file = training_file(Path(path))
    records = _json_lines(file) if file.suffix == ".jsonl" else _json_list(file)
    folder = ImageFolder(file.parent)
    samples: list[Sample] = []
    for where, index, record in records:
        if limit is not None and len(samples) >= limit:
            break
        samples.append(parse_sample(record, f"{file}: {where}", f"{file.stem}-{index}", folder))
    if not samples:
        raise DataError(f"{file} holds no samples", FORMATS, "add samples, or leave the file out")
    return samples


def read_many(paths: Sequence[Path], limit: int | None = None, seed: int = 0) -> list[Sample]:
    """Return the samples of all `paths`, or a random `limit` of them, drawn with `seed` and kept in order.

    Raises:
        DataError: as `read_samples`, for any of the files.
    """
    return drawn([sample for path in paths for sample in read_samples(path)], limit, seed)


def drawn(samples: list[Sample], limit: int | None, seed: int) -> list[Sample]:
    """Return the samples, or a random `limit` of them, drawn with `seed` and kept in order."""
    if limit is None or limit >= len(samples):
        return samples
    chosen = random.Random(seed).sample(range(len(samples)), limit)
    return [samples[index] for index in sorted(chosen)]


def training_file(path: Path) -> Path:
    """Return the file that is read of `path`: itself, or the first of `TRAIN_FILES` in the folder.

    Raises:
        DataError: there is none.
    """
    if path.is_dir():
        files = [path / name for name in TRAIN_FILES if (path / name).is_file()]
        if not files:
            raise DataError(f"folder {path} has no training file", " or ".join(TRAIN_FILES), "name the file itself")
        return files[0]
    if not path.is_file():
        raise DataError(f"no such file: {path}", FORMATS, "check the path where the config names it")
    if path.suffix not in (".json", ".jsonl"):
        raise DataError(f"{path} is neither .json nor .jsonl", FORMATS, "rename or convert it")
    return path


def _json_list(file: Path) -> Iterator[tuple[str, int, Any]]:
    """Yield each record of a .json list with its place in words and its number."""
    records = read_json(file, TRAINING_FILE)
    if not isinstance(records, list):
        raise DataError(f"{file} holds one JSON {type(records).__name__}, not a list", FORMATS, "wrap it in [ ]")
    for index, record in enumerate(records):
        yield f"sample number {index}", index, record


def _json_lines(file: Path) -> Iterator[tuple[str, int, Any]]:
    """Yield each record of a .jsonl file with its place in words and its line number."""
    return ((f"line {number}", number, value) for number, value in json_lines(file, TRAINING_FILE))

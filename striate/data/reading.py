"""Reads training files: LLaVA `conversations` and chat `messages`, as .json or .jsonl, each sample checked."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from striate.data.parsing import ImageFolder, parse_sample
from striate.data.pictures import verify_image
from striate.data.samples import Sample
from striate.errors import DataError

TRAIN_FILES = ("train.json", "train.jsonl")
FORMATS = "a .json list or .jsonl lines of samples with `conversations` (LLaVA) or `messages` (chat)"


def read_samples(path: Path, limit: int | None = None) -> list[Sample]:
    """Return the samples of `path` in file order, the first `limit` of them if that is given.

    Args:
        path: a .json or .jsonl file, or a folder that holds train.json or train.jsonl.
        limit: how many samples to read; None reads all.

    Raises:
        DataError: a missing, damaged or empty file, or a bad sample; names the file and the sample or line.
    """
    file = _training_file(Path(path))
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
    samples = [sample for path in paths for sample in read_samples(path)]
    if limit is None or limit >= len(samples):
        return samples
    chosen = random.Random(seed).sample(range(len(samples)), limit)
    return [samples[index] for index in sorted(chosen)]


def check_images(samples: Sequence[Sample]) -> int:
    """Return how many different pictures the samples have, after Pillow verified each once.

    Raises:
        DataError: a picture that is damaged or not a picture; names the sample and the file.
    """
    owners = {image: sample.id for sample in reversed(samples) for image in sample.images}
    for image, owner in owners.items():
        verify_image(image, owner)
    return len(owners)


def _training_file(path: Path) -> Path:
    if path.is_dir():
        files = [path / name for name in TRAIN_FILES if (path / name).is_file()]
        if not files:
            raise DataError(f"folder {path} has no training file", " or ".join(TRAIN_FILES), "name the file itself")
        return files[0]
    if not path.is_file():
        raise DataError(f"no such file: {path}", FORMATS, "check the path in data.train")
    if path.suffix not in (".json", ".jsonl"):
        raise DataError(f"{path} is neither .json nor .jsonl", FORMATS, "rename or convert it")
    return path


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror}", FORMATS, "check its permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: byte {error.start}", FORMATS, "save it as UTF-8") from error


def _json_list(file: Path) -> Iterator[tuple[str, int, Any]]:
    """Yield each record of a .json list with its place in words and its number."""
    records = _parse_json(_read_text(file), file, first_line=1)
    if not isinstance(records, list):
        raise DataError(f"{file} holds one JSON {type(records).__name__}, not a list", FORMATS, "wrap it in [ ]")
    for index, record in enumerate(records):
        yield f"sample number {index}", index, record


def _json_lines(file: Path) -> Iterator[tuple[str, int, Any]]:
    """Yield each record of a .jsonl file with its place in words and its line number."""
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if line.strip():
            yield f"line {number}", number, _parse_json(line, file, first_line=number)


def _parse_json(text: str, file: Path, first_line: int) -> Any:
    """Return the value of `text`; errors name the file's line and say when the text just stops."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        stops = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        problem = "the text stops in the middle (a truncated file?)" if stops and text.strip() else error.msg
        next_step = "copy or write the file again, whole" if stops else f"fix line {line}"
        raise DataError(f"{file} is not JSON: line {line}: {problem}", FORMATS, next_step) from error

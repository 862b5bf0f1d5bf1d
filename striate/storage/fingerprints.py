"""Short hashes of values, files and folders, over what is read of them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from striate.errors import ArtifactError
from striate.storage.file_digests import file_digests

CARD_FILE, RECORD_FILE = "README.md", "training_record.json"
LENGTH, EARLIER_LENGTH = 32, 16
WHOLE_BYTES, SAMPLE_BYTES = 8 * 2**20, 2**20
# What transformers, PEFT and striate read of a model's folder, and files of such names that training leaves there.
_OF_MODELS = "*.safetensors *model*.bin *.json *.jinja *.model *.model.v* *.spm *.bpe *.tiktoken vocab*.txt merges*.txt"
_OF_TRAINERS = f"trainer_state.json *_results.json {RECORD_FILE}"
_TEMPLATES, _INDEXES = "additional_chat_templates/*.jinja", "*.index.json"
_NOTES = "README* LICENSE* LICENCE* NOTICE* CHANGELOG* *.md Thumbs.db desktop.ini Icon?"


def fingerprint_of(inputs: Mapping[str, Any]) -> str:
    """Return a short hash of JSON-like values."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:LENGTH]


def fingerprint(path: Path) -> str:
    """Return a short hash of a file, or of what is read of a model's folder: names and contents.

    Model cards, records of training, hidden files and whatever else no loader opens are not in it.

    Raises:
        ArtifactError: it can't be read.
    """
    try:
        if path.is_dir():
            return fingerprint_files(path, model_files(path))
        return file_digests(path.parent, [path])[path.name][:LENGTH]
    except OSError as error:
        raise _unreadable(path, error) from error


def fingerprint_files(folder: Path, files: Iterable[Path]) -> str:
    """Return a short hash of the contents of `files`, and of their names in `folder`.

    Raises:
        ArtifactError: one can't be read.
    """
    try:
        return fingerprint_of(file_digests(folder, sorted(set(files), key=str)))
    except OSError as error:
        raise _unreadable(Path(error.filename or folder), error) from error


def visible_files(folder: Path) -> list[Path]:
    """Return the files below `folder` that no file browser, editor or version control left, notes for people aside."""
    return [
        path
        for path in folder.rglob("*")
        if not _is_hidden(path.relative_to(folder)) and not _matches(path.name, _NOTES) and path.is_file()
    ]


def earlier_fingerprint(path: Path) -> str:
    """Return the hash of a file or folder that earlier versions noted: of files over 8 MiB both ends and the middle.

    Raises:
        ArtifactError: it can't be read.
    """
    digest = hashlib.sha256()
    try:
        left_out = {path / CARD_FILE, path / RECORD_FILE}
        inside = (part for part in path.rglob("*") if part.is_file() and part not in left_out)
        for file in sorted(inside) if path.is_dir() else [path]:
            size = file.stat().st_size
            digest.update(f"{file.relative_to(path) if path.is_dir() else ''}:{size};".encode())
            with file.open("rb") as stream:
                for start in (0,) if size <= WHOLE_BYTES else (0, size // 2, size - SAMPLE_BYTES):
                    stream.seek(start)
                    digest.update(stream.read(WHOLE_BYTES if size <= WHOLE_BYTES else SAMPLE_BYTES))
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()[:EARLIER_LENGTH]


def weight_bytes(path: Path) -> int:
    """Return the size of the weight files in a model's folder; 0 for a hub id."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else 0


def model_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a model's folder that loading it reads; indexes name shards that may lie deeper."""
    named = {name for index in folder.glob(_INDEXES) if index.is_file() for name in _shards(index)}
    for path in (*folder.iterdir(), *folder.glob(_TEMPLATES), *(folder / name for name in sorted(named))):
        known = _matches(path.name, _OF_MODELS) and not _matches(path.name, _OF_TRAINERS)
        if known and not path.name.startswith(".") and path.is_file():
            yield path


def _shards(index: Path) -> list[str]:
    """Return the files that an index names within its folder; none where it is damaged, which loading it says."""
    try:
        names = json.loads(index.read_bytes())["weight_map"].values()
        return [name for name in names if ".." not in Path(name).parts and not Path(name).is_absolute()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())


def _unreadable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"can't read {path}: {error.strerror or error}", "files that you may read", "check its permissions"
    )

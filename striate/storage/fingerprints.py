"""Short hashes of values, files and folders."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from striate.errors import ArtifactError

CARD_FILE, RECORD_FILE = "README.md", "training_record.json"
WHOLE_BYTES, SAMPLE_BYTES = 8 * 2**20, 2**20


def fingerprint_of(inputs: Mapping[str, Any]) -> str:
    """Return a short hash of JSON-like values."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(path: Path) -> str:
    """Return a short hash of a file or folder: names, sizes and contents; of files over 8 MiB both ends and the middle.

    A folder's own README.md and training_record.json are not in it: a model card gains figures later, a record tells
    how long training took, and neither changes what the model does.

    Raises:
        ArtifactError: it can't be read.
    """
    digest = hashlib.sha256()
    try:
        beside = {path / CARD_FILE, path / RECORD_FILE}
        inside = (part for part in path.rglob("*") if part.is_file() and part not in beside)
        files = sorted(inside) if path.is_dir() else [path]
        for file in files:
            size = file.stat().st_size
            digest.update(f"{file.relative_to(path) if path.is_dir() else ''}:{size};".encode())
            with file.open("rb") as stream:
                for start in (0,) if size <= WHOLE_BYTES else (0, size // 2, size - SAMPLE_BYTES):
                    stream.seek(start)
                    digest.update(stream.read(WHOLE_BYTES if size <= WHOLE_BYTES else SAMPLE_BYTES))
    except OSError as error:
        raise ArtifactError(
            f"can't read {path}: {error.strerror}", "files that you may read", "check its permissions"
        ) from error
    return digest.hexdigest()[:16]


def weight_bytes(path: Path) -> int:
    """Return the size of the weight files in a model's folder; 0 for a hub id."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else 0

"""Notes in the cache folder of what was computed once: each holds its own digest, so that a damaged one is none."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from striate.errors import StriateError
from striate.storage.atomic import cache_folder, write_text


def read_note(kind: str, name: str) -> Any:
    """Return the JSON value noted under `name`; None where that is missing or damaged, or there is no cache folder."""
    # RuntimeError: links that lead in a circle.
    with suppress(StriateError, OSError, ValueError, RuntimeError):
        checksum, text = _place(kind, name).read_text(encoding="utf-8").split("\n", 1)
        if checksum == _digest(text):
            return json.loads(text)
    return None


def write_note(kind: str, name: str, value: Any) -> None:
    """Note a JSON value under `name`; where that can't be written it is computed once more, no worse."""
    text = json.dumps(value)
    with suppress(StriateError, OSError, RuntimeError):
        write_text(_place(kind, name), f"{_digest(text)}\n{text}")


def _place(kind: str, name: str) -> Path:
    return cache_folder() / kind / f"{name}.json"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

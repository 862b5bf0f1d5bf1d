"""Notes in the cache folder of what was computed once: each holds its own digest, so that a damaged one is none."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from striate.errors import StriateError
from striate.storage.atomic import write_text


def read_note(place: Path) -> Any:
    """Return the JSON value noted at `place`; None where that is missing or damaged."""
    with suppress(StriateError, OSError, ValueError):
        checksum, text = place.read_text(encoding="utf-8").split("\n", 1)
        if checksum == hashlib.sha256(text.encode()).hexdigest():
            return json.loads(text)
    return None


def write_note(place: Path, value: Any) -> None:
    """Note a JSON value at `place`; where that can't be written it is computed once more, no worse."""
    text = json.dumps(value)
    with suppress(StriateError):
        write_text(place, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")

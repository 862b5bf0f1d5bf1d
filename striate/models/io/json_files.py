"""Reads the small JSON files of a checkpoint, such as its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from striate.errors import ModelError


def read_json(file: Path, allowed: str, next_step: str) -> dict[str, Any]:
    """Return the JSON object in `file`; `allowed` and `next_step` are for errors.

    Raises:
        ModelError: it can't be read, or holds no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} can't be read: {error}", allowed, next_step) from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no JSON object", allowed, next_step)
    return content

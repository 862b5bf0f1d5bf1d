"""Reads the small JSON files of a checkpoint, such as its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from striate.errors import ModelError
from striate.storage.read_files import Form, read_object


def read_json(file: Path, allowed: str, next_step: str) -> dict[str, Any]:
    """Return the JSON object in `file`; `allowed` and `next_step` are for errors.

    Raises:
        ModelError: it can't be read, or holds no JSON object.
    """
    return read_object(file, Form(ModelError, allowed, next_step))


def object_of(file: Path) -> dict[str, Any]:
    """Return the JSON object in `file`; an empty one where it is damaged, which its own reader says."""
    try:
        return read_json(file, "", "")
    except ModelError:
        return {}

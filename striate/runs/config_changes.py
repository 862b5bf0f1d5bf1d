"""Check that a run folder is continued with the same science settings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from striate.config import RunConfig
from striate.errors import ArtifactError

_COMPARED = ("models", "others", "baseline", "gate", "effect", "floor", "suites")
FREE = {"machine", "report", "data.broken", "data.images", "prune.until_packs"}
FREE |= {f"evaluate.{key}" for key in _COMPARED}
"""Settings that no artifact of an earlier stage follows from, or only one that says so itself."""


def check_same_config(path: Path, old: RunConfig, new: RunConfig, overwrite: bool) -> None:
    """Check that the config `old` at `path` sets up the same science as `new`, unless it may be overwritten.

    Raises:
        ArtifactError: it does not.
    """
    differences = list(_differences(old.model_dump(), new.model_dump()))
    if differences and not overwrite:
        raise ArtifactError(
            f"{path} holds a run of another config: {'; '.join(differences[:4])}",
            "the same config (machine:, report:, and what evaluate compares may differ)",
            "choose another --out, or use --overwrite to do the stages again that it changes",
        )


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    # Settings that are mappings have other keys.
    for key in {**old, **new}:
        if f"{prefix}{key}" in FREE:
            continue
        one, other = old.get(key), new.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            yield f"{prefix}{key}: {one} -> {other}"

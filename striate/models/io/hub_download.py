"""Fetches files of a model on the hub with a bar in bytes, where they would be fetched in silence later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, snapshot_download
from tqdm import tqdm

from striate.config import looks_like_hub_id
from striate.models.io.hub_reach import copy_if_silent
from striate.models.io.quiet import quietly
from striate.progress import Advance, Progress, track_bytes
from striate.storage.read_files import user_path

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors")
"""The weight files that transformers and PEFT take where they are; of other names they fetch without a bar."""


def fetch_weights(model: str | Path, revision: str | None, progress: Progress) -> None:
    """Fetch the weights of the hub id `model` that are not here yet; a folder has its own.

    What goes wrong is left to the loading that follows, which tells it.
    """
    name = str(model)
    if not user_path(name).exists() and looks_like_hub_id(name):
        fetch_files(name, revision, progress, WEIGHTS)


def fetch_files(name: str, revision: str | None, progress: Progress, patterns: Sequence[str] = ("*",)) -> None:
    """Fetch the files of the hub id `name` that are not here yet, of those whose names match one of `patterns`.

    What goes wrong is left to what reads them then.
    """
    if constants.HF_HUB_OFFLINE or copy_if_silent(name, revision) is not None:
        return
    try:
        missing = _missing(name, revision, patterns)
        if missing:
            with track_bytes(progress, f"fetch {name}", sum(missing.values())) as advance:
                for file, size in missing.items():
                    counted = _Counted(size, advance)
                    hf_hub_download(name, file, revision=revision, tqdm_class=_bar(counted))
                    counted.move(size)
    except (OSError, ValueError):
        return


def _missing(name: str, revision: str | None, patterns: Sequence[str]) -> dict[str, int]:
    """Return the bytes of each file of a repository that is not in the cache, by its name."""
    with quietly(True):
        files: Any = snapshot_download(name, revision=revision, allow_patterns=list(patterns), dry_run=True)
    return {file.filename: file.file_size for file in files if file.will_download}


class _Counted:
    """Hands on the bytes of one file, at most as many as it has: the hub's client may draw two bars of one file."""

    def __init__(self, size: int, advance: Advance) -> None:
        self._left, self._advance = size, advance

    def move(self, count: int) -> None:
        count = min(count, self._left)
        self._left -= count
        self._advance(count)


def _bar(counted: _Counted) -> Any:
    """Return a class of bars that draws nothing, and hands on what each one is moved by."""

    class Handed(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            counted.move(int(n or 0))
            return None

    return Handed

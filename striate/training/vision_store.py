"""Vision features by picture, in memory or in one memory-mapped file that the runs of a sweep share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from striate.errors import ArtifactError
from striate.writing import new_folder

NAME, INDEX, TENSOR = "features.safetensors", "index.json", "features"
_HEADER = 4096
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Store(Protocol):
    """Where features are kept."""

    def __contains__(self, key: object) -> bool:
        """Return whether the features of a picture are there."""

    def get(self, key: str) -> torch.Tensor:
        """Return them, (rows, ...), on the CPU."""


class MemoryStore(dict[str, torch.Tensor]):
    """Keeps features in this process's memory."""

    def get(self, key: str) -> torch.Tensor:  # type: ignore[override]
        """Return the features of a picture, (rows, ...)."""
        return self[key]


class DiskStore:
    """Reads features from a folder that `disk_writer` wrote; nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            ArtifactError: it is not one of features, or was damaged.
        """
        self._path = folder / NAME
        try:
            self._places: dict[str, list[int]] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            self._tensor()
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ArtifactError(
                f"{folder} holds no whole vision features: {error}",
                "a folder that machine.cache_vision=disk wrote",
                "remove it: it is made anew",
            ) from error

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def get(self, key: str) -> torch.Tensor:
        """Return the features of a picture, (rows, ...)."""
        first, count = self._places[key]
        found: torch.Tensor = self._tensor()[first : first + count]
        return found

    def _tensor(self) -> Any:
        """Return the file's tensor as a slice that reads nothing yet; every process opens the file itself."""
        if getattr(self, "_owner", None) != os.getpid():
            self._file = safe_open(str(self._path), framework="pt")
            self._owner = os.getpid()
        return self._file.get_slice(TENSOR)


class DiskWriter:
    """Adds features to the file, one picture after another."""

    def __init__(self, path: Path) -> None:
        """Open the file; its header is written last, when the number of rows is known."""
        self._stream = path.open("wb")
        self._stream.write(b" " * _HEADER)
        self.places: dict[str, list[int]] = {}
        self._rows = 0
        self._like: torch.Tensor | None = None

    def add(self, key: str, features: torch.Tensor) -> None:
        """Write the features (rows, ...) of one picture."""
        features = features.contiguous().cpu()
        self._like = features if self._like is None else self._like
        self._stream.write(features.view(torch.uint8).numpy().tobytes())
        self.places[key] = [self._rows, features.shape[0]]
        self._rows += features.shape[0]

    def close(self) -> None:
        """Write the header of the safetensors format: its length, then JSON, filled up with spaces."""
        if self._like is not None:
            size = self._stream.tell() - _HEADER
            shape = [self._rows, *self._like.shape[1:]]
            entry = {"dtype": _CODES[self._like.dtype], "shape": shape, "data_offsets": [0, size]}
            text = json.dumps({TENSOR: entry}).encode().ljust(_HEADER - 8)
            self._stream.seek(0)
            self._stream.write((_HEADER - 8).to_bytes(8, "little") + text)
        self._stream.close()


@contextmanager
def disk_writer(folder: Path) -> Iterator[DiskWriter]:
    """Yield a writer of a new folder of features, which appears whole or not at all.

    Raises:
        ArtifactError: it can't be written, or the disk is full.
    """
    with new_folder(folder) as place:
        writer = DiskWriter(place / NAME)
        try:
            yield writer
        finally:
            writer.close()
        (place / INDEX).write_text(json.dumps(writer.places), encoding="utf-8")


def check_room(bytes_needed: int, folder: Path | None) -> None:
    """Check that the features fit on the disk of `folder`, or into memory if that is None.

    Raises:
        ArtifactError: they don't.
    """
    if folder is None:
        free = _free_memory()
        where = "memory"
    else:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free, where = shutil.disk_usage(there).free, f"the disk of {there}"
    if free is not None and bytes_needed > free:
        raise ArtifactError(
            f"vision features need {bytes_needed / 2**30:.1f} GiB, and {where} has {free / 2**30:.1f} GiB free",
            "room for the features of every training picture",
            "use machine.cache_vision=off" if folder else "use machine.cache_vision=disk, or off",
        )


def _free_memory() -> int | None:
    """Return the bytes of memory that are free for use, where the system says it."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    values: Mapping[str, str] = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None

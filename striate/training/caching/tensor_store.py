"""Tensors that are computed once, by name: in memory, or in one memory-mapped file that the runs of a sweep share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from striate.errors import ArtifactError
from striate.storage.atomic import new_folder

NAME, INDEX, TENSOR = "features.safetensors", "index.json", "features"
_HEADER = 4096
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Store(Protocol):
    """Where tensors are kept."""

    def __contains__(self, key: object) -> bool:
        """Return whether a tensor is there."""

    def get(self, key: str) -> torch.Tensor:
        """Return it, (rows, ...), on the CPU."""


class MemoryStore(dict[str, torch.Tensor]):
    """Keeps tensors in this process's memory."""

    def get(self, key: str) -> torch.Tensor:  # type: ignore[override]
        """Return a tensor, (rows, ...)."""
        return self[key]


class DiskStore:
    """Reads tensors from a folder that `disk_writer` wrote; nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            ArtifactError: it is no such folder, or was damaged.
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
        """Return a tensor, (rows, ...)."""
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
    """Adds tensors to the file, one after another.

    Attributes:
        folder: where the file is; more may be written beside it.
        places: the first row and the number of rows of each tensor.
    """

    def __init__(self, folder: Path) -> None:
        """Open the file; its header is written last, when the number of rows is known."""
        self.folder = folder
        self._stream = (folder / NAME).open("wb")
        self._stream.write(b" " * _HEADER)
        self.places: dict[str, list[int]] = {}
        self._rows = 0
        self._like: torch.Tensor | None = None

    def add(self, key: str, tensor: torch.Tensor) -> None:
        """Write one tensor (rows, ...); all have the same number format and form of rows."""
        tensor = tensor.contiguous().cpu()
        self._like = tensor[:0] if self._like is None else self._like
        self._stream.write(tensor.view(torch.uint8).numpy().data)
        self.places[key] = [self._rows, tensor.shape[0]]
        self._rows += tensor.shape[0]

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
    """Yield a writer of a new folder of tensors, which appears whole or not at all.

    Raises:
        ArtifactError: it can't be written, or the disk is full.
    """
    with new_folder(folder) as place:
        writer = DiskWriter(place)
        try:
            yield writer
        finally:
            writer.close()
        (place / INDEX).write_text(json.dumps(writer.places), encoding="utf-8")


def write_once(folder: Path, work: Callable[[DiskWriter], object]) -> bool:
    """Let `work` write the tensors of `folder` unless they are there; return whether that was needed.

    Raises:
        ArtifactError: it can't be written, or the disk is full.
    """
    if folder.exists():
        return False
    try:
        with disk_writer(folder) as writer:
            work(writer)
    except ArtifactError:
        # Another training of the same sweep may have written the same meanwhile.
        if not folder.exists():
            raise
        return False
    return True


def check_room(bytes_needed: int, folder: Path | None) -> None:
    """Check that the tensors fit on the disk of `folder`, or into memory if that is None.

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
            "room for those of all training samples",
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

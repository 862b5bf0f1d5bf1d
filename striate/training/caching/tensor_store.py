"""Tensors under names in one memory-mapped file, written once and shared by the runs of a sweep; the room for them."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from striate.errors import ArtifactError
from striate.storage.atomic import cannot_write, new_folder
from striate.storage.held_folders import alone_at

DATA, INDEX = "tensors.bin", "index.txt"


class TensorWriter:
    """Appends tensors to a file, one after another.

    Attributes:
        index: number format, first byte, byte after the last one, shape and checksum of each tensor, by name.
    """

    def __init__(self, stream: BinaryIO) -> None:
        """Write to `stream`, which is empty."""
        self._stream = stream
        self.index: dict[str, tuple[str, int, int, list[int], int]] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append one tensor of any shape and number format."""
        start = self._stream.tell()
        content = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
        self._stream.write(content)
        number_format = str(tensor.dtype).removeprefix("torch.")
        self.index[name] = (number_format, start, self._stream.tell(), list(tensor.shape), zlib.crc32(content))


class StoredTensors(Mapping[str, torch.Tensor]):
    """The tensors of a folder that `write_once` made; each is read from the mapped file when it is asked for.

    A tensor whose bytes have changed since raises ArtifactError.
    """

    def __init__(self, folder: Path) -> None:
        """Map the file.

        Raises:
            ArtifactError: the folder is damaged, or was written by something else.
        """
        self._folder = folder
        try:
            if not all((folder / name).is_file() for name in (INDEX, DATA)):
                raise ValueError(f"{INDEX} and {DATA} are no ordinary files")
            self._index = _checked_index((folder / INDEX).read_bytes())
            # A plain view: the slices of `memmap` itself are slow.
            self._bytes = np.memmap(folder / DATA, dtype=np.uint8, mode="r").view(np.ndarray)
            wanted = max(end for _, _, end, _, _ in self._index.values())
            if len(self._bytes) != wanted:
                raise ValueError(f"{DATA} has {len(self._bytes)} bytes of {wanted}")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise self._damaged(str(error)) from error

    def __getitem__(self, name: str) -> torch.Tensor:
        number_format, start, end, shape, checksum = self._index[name]
        tensor = torch.empty(shape, dtype=getattr(torch, number_format))
        content = tensor.reshape(-1).view(torch.uint8).numpy()
        content[:] = self._bytes[start:end]
        if zlib.crc32(content.data) != checksum:
            raise self._damaged(f"bytes {start} to {end} of {DATA} were changed or damaged")
        return tensor

    def _damaged(self, reason: str) -> ArtifactError:
        return ArtifactError(
            f"{self._folder} holds no whole tensors: {reason}",
            "a folder as machine.cache_vision=disk wrote it",
            "remove that folder: it is written again",
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __reduce__(self) -> tuple[type[StoredTensors], tuple[Path]]:
        """Let a worker process that is not forked map the file itself."""
        return StoredTensors, (self._folder,)


def write_once(
    folder: Path, work: Callable[[TensorWriter], object], on_wait: Callable[[], object] = lambda: None
) -> bool:
    """Let `work` write the tensors of `folder`, whole or not at all, unless they are there; return whether it did.

    One process at a time does; others call `on_wait`, wait, and find there what they wanted.

    Raises:
        ArtifactError: they can't be written, or the disk is full.
    """
    if folder.exists():
        return False
    try:
        with alone_at(folder, on_wait):
            # Another run of the same sweep may have written the same meanwhile.
            return not folder.exists() and _write(folder, work)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _write(folder: Path, work: Callable[[TensorWriter], object]) -> bool:
    try:
        with new_folder(folder) as place:
            with (place / DATA).open("wb") as stream:
                writer = TensorWriter(stream)
                work(writer)
            index = json.dumps(writer.index).encode()
            (place / INDEX).write_bytes(hashlib.sha256(index).hexdigest().encode() + b"\n" + index)
    except ArtifactError:
        # Where folders can't be locked, another run may write the same at the same time.
        if not folder.exists():
            raise
        return False
    return True


def _checked_index(content: bytes) -> dict[str, list[Any]]:
    digest, _, text = content.partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError(f"{INDEX} was changed or damaged")
    index: dict[str, list[Any]] = json.loads(text)
    return index


def check_room(bytes_needed: int, folder: Path | None) -> None:
    """Check that vision features fit on the disk of `folder`, or into memory if that is None.

    Raises:
        ArtifactError: they don't.
    """
    if folder is None:
        free, where = _free_memory(), "memory"
    else:
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        free, where = shutil.disk_usage(existing).free, f"the disk of {existing}"
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
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None

"""Samples on the disk: any one is read by its number, and none stays in memory. No torch."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from striate.data.samples import Sample
from striate.data.sources.image_folder import name_in
from striate.data.sources.stored_pictures import Picture, StoredPicture
from striate.data.store.sample_columns import (
    DIGEST_BYTES,
    SampleColumns,
    of_record,
    text_digest,
    text_length,
    text_record,
)

TEXTS, ENDS, LENGTHS, COUNTS, SHOWN, DIGESTS, PICTURES = (
    "texts.bin", "ends.npy", "lengths.npy", "counts.npy", "shown.npy", "digests.npy", "pictures.jsonl",
)  # fmt: skip


class StoredSamples(Sequence[Sample]):
    """The samples that `write_samples` wrote to `folder`; pictures lie in `data`, or where their names say.

    Texts are read from a memory map, so that processes share them and the system may drop them; what is kept in memory
    are a few numbers a sample, and each picture's name once.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self._ends, self._counts, self._shown, self._digests, lengths = (
            np.load(folder / name) for name in (ENDS, COUNTS, SHOWN, DIGESTS, LENGTHS)
        )
        self._firsts = np.concatenate([[0], np.cumsum(self._counts)])
        self.columns = SampleColumns(lengths.astype(np.int64), self._counts.astype(np.int64))
        self.names: list[Any] = [json.loads(line) for line in (folder / PICTURES).read_bytes().splitlines()]

    def __reduce__(self) -> tuple[type[StoredSamples], tuple[Path, Path]]:
        return type(self), (self.folder, self.data)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self._sample(row) for row in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._sample(index % len(self))

    def __iter__(self) -> Iterator[Sample]:
        return map(self._sample, range(len(self)))

    def shown(self, index: int) -> tuple[Picture, ...]:
        """Return the pictures of a sample, whose text is not read."""
        first = self._firsts[index]
        return tuple(self.pictures[number] for number in self._shown[first : first + self._counts[index]])

    def digest(self, index: int) -> bytes:
        """Return what stands for the text of a sample."""
        return bytes(self._digests[index])

    @cached_property
    def pictures(self) -> list[Picture]:
        """Every picture, once."""
        return [_picture(name, self.data) for name in self.names]

    @cached_property
    def _texts(self) -> NDArray[np.uint8]:
        return np.memmap(self.folder / TEXTS, dtype=np.uint8, mode="r")

    def _sample(self, index: int) -> Sample:
        begin = int(self._ends[index - 1]) if index else 0
        return of_record(self._texts[begin : int(self._ends[index])].tobytes(), self.shown(index))


def write_samples(samples: Iterable[Sample], folder: Path, data: Path) -> None:
    """Write samples to `folder`, which is empty, one in memory at a time; raises what `samples` raises, or OSError."""
    ends, lengths, counts, shown = array("q"), array("i"), array("i"), array("i")
    digests, numbers, end = bytearray(), dict[Picture, int](), 0
    with (folder / TEXTS).open("wb", buffering=2**20) as stream:
        for sample in samples:
            record = text_record(sample)
            end += stream.write(record)
            ends.append(end)
            lengths.append(text_length(sample))
            counts.append(len(sample.images))
            shown.extend(numbers.setdefault(picture, len(numbers)) for picture in sample.images)
            digests += text_digest(record)
    for name, values in ((ENDS, ends), (LENGTHS, lengths), (COUNTS, counts), (SHOWN, shown)):
        np.save(folder / name, np.array(values))
    np.save(folder / DIGESTS, np.frombuffer(bytes(digests), np.uint8).reshape(-1, DIGEST_BYTES))
    with (folder / PICTURES).open("w", encoding="utf-8") as stream_of_names:
        for picture in numbers:
            stream_of_names.write(json.dumps(_name(picture, data)) + "\n")


def _name(picture: Picture, data: Path) -> Any:
    if isinstance(picture, Path):
        return name_in(data, picture)
    return [picture.digest, str(picture.file), picture.offset, picture.size, picture.label]


def _picture(name: Any, data: Path) -> Picture:
    if isinstance(name, str):
        return data / name
    digest, file, offset, size, label = name
    return StoredPicture(digest, Path(file), offset, size, label)

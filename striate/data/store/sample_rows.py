"""Samples of several sources, chosen by their numbers: what training reads of large data. No torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import overload

import numpy as np

from striate.data.samples import Sample
from striate.data.sources.stored_pictures import Picture
from striate.data.store.sample_columns import SampleColumns, text_digest, text_record
from striate.data.store.stored_samples import StoredSamples


class SampleRows(Sequence[Sample]):
    """The samples `rows` of all `parts` together, in that order; none is read before it is asked for."""

    def __init__(self, parts: Sequence[Sequence[Sample]], rows: Sequence[int]) -> None:
        self.parts = tuple(parts)
        self.rows = np.asarray(rows, dtype=np.int64)
        self._ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        part, place = self._at(index)
        return part[place]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def shown(self, index: int) -> tuple[Picture, ...]:
        """Return the pictures of a sample, whose text is not read where its part is stored."""
        part, place = self._at(index)
        return part.shown(place) if isinstance(part, StoredSamples) else part[place].images

    def digest(self, index: int) -> bytes:
        """Return what stands for the text of a sample."""
        part, place = self._at(index)
        return part.digest(place) if isinstance(part, StoredSamples) else text_digest(text_record(part[place]))

    @cached_property
    def columns(self) -> SampleColumns:
        """Lengths and numbers of pictures of the samples."""
        parts = [SampleColumns.of(part) for part in self.parts]
        lengths, pictures = (
            np.concatenate([getattr(part, name) for part in parts])[self.rows] for name in ("lengths", "pictures")
        )
        return SampleColumns(lengths, pictures)

    def _at(self, index: int) -> tuple[Sequence[Sample], int]:
        row = int(self.rows[index])
        part = bisect_right(self._ends, row)
        return self.parts[part], row - (self._ends[part - 1] if part else 0)

"""What is asked of all samples at once: how long their texts are, and how many pictures they show. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from striate.data.samples import Message, Sample
from striate.data.sources.stored_pictures import Picture

DIGEST_BYTES = 16


@dataclass(frozen=True)
class SampleColumns:
    """Of each sample the characters of its text and the number of its pictures, (N,) each."""

    lengths: NDArray[np.int64]
    pictures: NDArray[np.int64]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> SampleColumns:
        """Return those of `samples`: as they are kept with large data, or counted."""
        kept = getattr(samples, "columns", None)
        if isinstance(kept, SampleColumns):
            return kept
        lengths = [text_length(sample) for sample in samples]
        return cls(np.array(lengths, np.int64), np.array([len(sample.images) for sample in samples], np.int64))

    def smallest(self, count: int) -> list[int]:
        """Return the `count` samples with the fewest pictures, but one, and the shortest texts of those."""
        order = np.lexsort((self.lengths, self.pictures, self.pictures == 0))
        return [int(index) for index in order[:count]]


def pictures_shown(samples: Sequence[Sample]) -> Iterator[tuple[Picture, ...]]:
    """Yield the pictures of each sample; of large data no text is read for that."""
    shown: Callable[[int], tuple[Picture, ...]] | None = getattr(samples, "shown", None)
    return map(shown, range(len(samples))) if shown else (sample.images for sample in samples)


def text_length(sample: Sample) -> int:
    """Return the characters of a sample's turns."""
    return sum(len(message.text) for message in sample.messages)


def text_record(sample: Sample) -> bytes:
    """Return id, task and turns of a sample as JSON."""
    turns = [(message.role, message.text) for message in sample.messages]
    return json.dumps([sample.id, sample.task, turns], ensure_ascii=False).encode()


def of_record(record: bytes, images: tuple[Picture, ...]) -> Sample:
    """Return the sample of a record that `text_record` made."""
    values: list[Any] = json.loads(record)
    return Sample(values[0], tuple(Message(role, text) for role, text in values[2]), images, values[1])


def turns_digest(sample: Sample) -> bytes:
    """Return what stands for the turns of a sample, whatever its id and task."""
    turns = json.dumps([(message.role, message.text) for message in sample.messages])
    return text_digest(turns.encode())


def text_digest(record: bytes) -> bytes:
    """Return what stands for a record."""
    return hashlib.blake2b(record, digest_size=DIGEST_BYTES).digest()

"""Pairs of drawn pictures as samples: two pictures that differ in one attribute, each with either answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from striate.data.collate import Collator
from striate.data.picture_pairs import picture_pair
from striate.data.samples import Message, Sample
from striate.errors import ModelError


@dataclass(frozen=True)
class DrawnPair:
    """Two pictures on disk, as samples: each picture with either answer."""

    id: str
    first: tuple[Sample, Sample]
    second: tuple[Sample, Sample]


@dataclass(frozen=True)
class PairCollator:
    """Makes two batches of pairs that hold the same tokens: the first pictures, and the second ones."""

    collate: Collator

    def __call__(self, pairs: Sequence[DrawnPair]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return both batches; rows are (pair, answer)."""
        first = self.collate([sample for pair in pairs for sample in pair.first])
        second = self.collate([sample for pair in pairs for sample in pair.second])
        if not torch.equal(first["input_ids"], second["input_ids"]):
            raise ModelError(
                "the processor makes other tokens of two pictures of one size",
                "a processor whose image tokens depend on a picture's size alone",
                "leave the token-swap scorers out",
            )
        return first, second


@contextmanager
def drawn_pairs(attributes: Sequence[str], count: int, seed: int) -> Iterator[list[DrawnPair]]:
    """Yield `count` pairs of each of `attributes`, in that order, with their pictures in a folder for now."""
    with TemporaryDirectory(prefix="striate-pairs-") as folder:
        numbers = [(name, seed * count + number) for name in attributes for number in range(count)]
        yield [_written(Path(folder), name, number) for name, number in numbers]


def _written(folder: Path, attribute: str, number: int) -> DrawnPair:
    pair, name = picture_pair(attribute, number), f"{attribute}-{number}"
    files = folder / f"{name}-a.png", folder / f"{name}-b.png"
    for file, picture in zip(files, pair.pictures, strict=True):
        picture.save(file, compress_level=1)
    question = Message("user", f"<image>\n{pair.question}")
    both = [
        tuple(Sample(name, (question, Message("assistant", answer)), (file,), attribute) for answer in pair.answers)
        for file in files
    ]
    return DrawnPair(name, (both[0][0], both[0][1]), (both[1][0], both[1][1]))

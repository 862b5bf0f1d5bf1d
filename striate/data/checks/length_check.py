"""Which samples do not fit into a length limit: looked up beforehand, most without their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from striate.data.collate import Collator
from striate.data.pictures import FORMATS, PictureLimits, pillow_source
from striate.data.samples import Sample
from striate.data.sources.stored_pictures import Picture
from striate.data.store.sample_columns import SampleColumns, pictures_shown
from striate.errors import DataError, TooLongError

_UNLIMITED = 2**40
# Of a token of text.
_CHARACTERS = 4
# Tokens by which a text may differ from its parts, and one of the answer.
_SLACK = 8
Size = tuple[int, int]


@dataclass(frozen=True)
class Lengths:
    """How long samples are, in tokens.

    Attributes:
        wrong: the id of each sample that does not fit, and what is wrong with it.
        samples: how many there are.
        counted: of how many the tokens were counted.
        text: tokens of all texts, with one for each picture; estimated of those that were not counted.
        longest: of the longest text, likewise.
        pictures: how often a picture is shown.
        image_tokens: the most that one takes, of those that were encoded.
    """

    wrong: tuple[tuple[str, str], ...]
    samples: int
    counted: int
    text: int
    longest: int
    pictures: int
    image_tokens: int


def oversized(
    processor: Any,
    samples: Sequence[Sample],
    max_length: int,
    limits: PictureLimits,
    *,
    train: bool = True,
    skips: bool = False,
) -> dict[str, str]:
    """Return what is wrong with each sample that does not fit into `max_length` tokens, by its id; as `lengths`."""
    return dict(lengths(processor, samples, max_length, limits, train=train, skips=skips).wrong)


def lengths(
    processor: Any,
    samples: Sequence[Sample],
    max_length: int,
    limits: PictureLimits,
    *,
    train: bool = True,
    skips: bool = False,
    most_counted: int | None = None,
) -> Lengths:
    """Return how long the samples are, and what is wrong with each that does not fit into `max_length` tokens.

    A sample is encoded only if its text and the most image tokens that a picture takes are more than that. With `train`
    off samples are prompts, of which nothing is cut. Of more than `most_counted` samples so many are looked at: half of
    them those with the most text and pictures, the others evenly spaced among the rest.

    Raises:
        DataError: a sample is wrong in another way, such as that the chat template refuses it; with `skips` that is
            returned too.
    """
    collator = Collator(processor, max_length, train, limits)
    most = _most_image_tokens(Collator(processor, _UNLIMITED, train, limits), samples)
    columns, wrong = SampleColumns.of(samples), list[tuple[str, str]]()
    largest, others = _chosen(columns, most, most_counted)
    texts: dict[int, int] = {}
    for index in sorted([*largest, *others]):
        sample = samples[index]
        try:
            texts[index] = collator.text_length(sample)
            room = max_length - most * len(sample.images)
            if texts[index] > room and not _opens_within(collator, sample, room):
                collator.encode([sample])
        except DataError as error:
            if not (skips or isinstance(error, TooLongError)):
                raise
            wrong.append((sample.id, error.given))
    counted = len(largest) + len(others)
    usual = sum(texts.get(index, 0) for index in others) / max(1, len(others))
    total = sum(texts.get(index, 0) for index in largest) + round(usual * (len(samples) - len(largest)))
    return Lengths(
        tuple(wrong), len(samples), counted, total, max(texts.values(), default=0), int(columns.pictures.sum()), most
    )


def _opens_within(collator: Collator, sample: Sample, room: int) -> bool:
    """Return whether its first answer surely begins within `room` tokens of text: what is behind may be cut."""
    opening = collator.opening_length(sample)
    return opening is not None and opening + _SLACK <= room


def _chosen(columns: SampleColumns, image_tokens: int, most: int | None) -> tuple[list[int], list[int]]:
    """Return the samples that are counted: those of the most text and pictures, and others, which are all of a few."""
    count = len(columns.lengths)
    if most is None or count <= most:
        return [], list(range(count))
    order = np.argsort(-(columns.lengths + _CHARACTERS * image_tokens * columns.pictures), kind="stable")
    largest = order[: most // 2].tolist()
    rest = np.sort(order[most // 2 :])
    return largest, rest[np.linspace(0, len(rest) - 1, most - len(largest)).astype(int)].tolist()


def _most_image_tokens(collator: Collator, samples: Sequence[Sample]) -> int:
    """Return the most tokens that a picture takes: of the largest, the widest and the tallest that can be used."""
    owners: dict[Picture, int] = {}
    for index, images in enumerate(pictures_shown(samples)):
        for image in images:
            owners.setdefault(image, index)
    sizes = {picture: _size(picture) for picture in owners}
    most = 0
    for rank in (_area, _width, _height):
        for picture in sorted(sizes, key=lambda one, rank=rank: -rank(sizes[one])):  # type: ignore[misc]
            sample = samples[owners[picture]]
            try:
                [encoded] = collator.encode([sample])
                most = max(most, -(-(encoded.length - collator.text_length(sample)) // len(sample.images)))
                break
            except DataError:
                continue
    return most


def _size(picture: Picture) -> Size:
    """Return the size of a picture; of one that can't be read, the smallest there is."""
    try:
        with Image.open(pillow_source(picture), formats=FORMATS) as opened:
            return opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return (1, 1)


def _area(size: Size) -> float:
    return size[0] * size[1]


def _width(size: Size) -> float:
    return size[0] / size[1]


def _height(size: Size) -> float:
    return size[1] / size[0]

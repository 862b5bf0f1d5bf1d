"""Reads a source of training data and returns what was understood of it, record by record."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from striate.data.overview.answer_tally import AnswerTally
from striate.data.overview.picture_facts import PictureFacts, picture_facts
from striate.data.parsing import parse_sample
from striate.data.pictures import PictureLimits
from striate.data.reading import columns_apply
from striate.data.samples import Sample
from striate.data.sources.image_folder import ImageFolder
from striate.data.sources.source_files import source_files
from striate.data.sources.source_options import SourceOptions
from striate.data.sources.stored_pictures import Picture
from striate.errors import DataError
from striate.printable import shown as printable

NAMED = 10
"""So many refused records and broken pictures are named."""
MOST_COUNTED = 20_000
"""Of so many samples, the first ones, tokens are counted."""


@dataclass(frozen=True)
class SourceOverview:
    """What a source holds.

    Attributes:
        files: that were read.
        samples: how many were understood.
        answers: turns that are learned.
        pictured: samples with pictures.
        tasks: how many samples each task has.
        tokens: of texts, with one for each picture: all, a sample's median and most; empty without a processor.
        counted: of how many samples.
        pictures: what is true of them.
        refused: how many records can't be read.
        reasons: of the first of those.
        warnings: what is odd.
        shown: some samples, drawn by seed, in their order.
    """

    files: tuple[Path, ...]
    samples: int
    answers: int
    pictured: int
    tasks: dict[str, int]
    tokens: tuple[int, ...]
    counted: int
    pictures: PictureFacts
    refused: int
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    shown: tuple[Sample, ...]


def look_at(
    path: Path,
    options: SourceOptions,
    limits: PictureLimits,
    *,
    shown: int = NAMED,
    seed: int = 0,
    length: Callable[[Sample], int] | None = None,
) -> SourceOverview:
    """Return what the source at `path` holds; a record that can't be read is counted, and the rest goes on.

    Args:
        path: as `iter_samples`.
        options: how records are read.
        limits: the largest picture that is decoded.
        shown: how many samples to draw.
        seed: of those.
        length: counts the tokens of a sample, where a processor is there.

    Raises:
        DataError: the source can't be read, or none of its records.
    """
    tally, chance = AnswerTally(), random.Random(seed)
    owners: dict[Picture, str] = {}
    drawn: dict[int, Sample] = {}
    refused: list[DataError] = []
    count, lengths = 0, array("l")
    for one in each_sample(path, options):
        if isinstance(one, DataError):
            count += 1
            refused += [one] if count <= NAMED else []
            continue
        _draw(drawn, shown, tally.samples, one, chance)
        tally.add(one)
        for picture in one.images:
            owners.setdefault(picture, one.id)
        if length and len(lengths) < MOST_COUNTED:
            lengths.append(length(one))
    if not tally.samples:
        raise refused[0] if refused else DataError(f"{path} holds no samples", "one or more", "check the file")
    pictures = picture_facts(owners, limits)
    return SourceOverview(
        files=source_files(path).files,
        samples=tally.samples,
        answers=tally.answers,
        pictured=tally.pictured,
        tasks={name: task.samples for name, task in tally.tasks.items()},
        tokens=_spread(lengths),
        counted=len(lengths),
        pictures=pictures,
        refused=count,
        reasons=tuple(error.given for error in refused),
        warnings=(*_unused(path, options), *_warnings(pictures), *tally.warnings()),
        shown=tuple(drawn[index] for index in sorted(drawn)),
    )


def each_sample(path: Path, options: SourceOptions) -> Iterator[Sample | DataError]:
    """Yield each sample of `path`, or in its place what is wrong with its record.

    Raises:
        DataError: the source itself can't be read.
    """
    source = source_files(path)
    folder = ImageFolder(source.folder, options.images)
    for file in source.files:
        for where, number, value in source.read(file):
            try:
                yield parse_sample(value, f"{file}: {where}", f"{file.stem}-{number}", folder, options)
            except DataError as error:
                yield error


def _draw(drawn: dict[int, Sample], most: int, index: int, sample: Sample, chance: random.Random) -> None:
    """Keep `most` samples of all that have come by, each as likely as another (Vitter's algorithm R, 1985)."""
    if len(drawn) < most:
        drawn[index] = sample
    elif most and (place := chance.randrange(index + 1)) < most:
        del drawn[sorted(drawn)[place]]
        drawn[index] = sample


def _spread(lengths: array[int]) -> tuple[int, ...]:
    ordered = sorted(lengths)
    return (sum(ordered), ordered[len(ordered) // 2], ordered[-1]) if ordered else ()


def _unused(path: Path, options: SourceOptions) -> Iterator[str]:
    if not columns_apply(path, options):
        names = ", ".join(map(printable, options.columns.values()))
        yield f"data.columns has no effect here: none of the first records has a column {names}"


def _warnings(pictures: PictureFacts) -> Iterator[str]:
    if pictures.broken:
        yield f"{len(pictures.broken)} of {pictures.compared} pictures that were decoded can't be used"
    if pictures.copies:
        yield f"{pictures.copies} of {pictures.count} pictures hold the same bytes as another one"
    if pictures.alike:
        yield f"{pictures.alike} of {pictures.compared} pictures that were compared look like another one"

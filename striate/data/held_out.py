"""Samples that training is measured on and never learns from: a share of the training data, or a file of their own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from striate.config import DataSection
from striate.data.mixing import SampleSources, mixed, source_of
from striate.data.picture_copies import first_copies
from striate.data.reading import drawn, joined, read_samples
from striate.data.samples import Sample
from striate.data.sources.source_options import SourceOptions
from striate.data.sources.stored_pictures import Picture
from striate.data.store.sample_columns import SampleColumns, pictures_shown, turns_digest
from striate.errors import DataError, TrainingError


@dataclass(frozen=True)
class TrainingData:
    """The samples to train on, and those that are held out; none of these is among the first."""

    samples: Sequence[Sample]
    held_out: list[Sample]
    sources: SampleSources | None = None


def training_data(
    section: DataSection, paths: Sequence[Path], validate: Path | None = None, seed: int = 0
) -> TrainingData:
    """Return the samples of the files or folders at `paths`, apart from those that `data.validate` holds out.

    Args:
        section: says how many samples, and which share of them is held out.
        paths: the training data.
        validate: file or folder of held-out samples, where `data.validate` names one.
        seed: of what is drawn.

    Raises:
        DataError: a sample can't be read, nothing is left to train on, or a sample of `validate` is trained on.
    """
    options = SourceOptions.of(section)
    parts = [read_samples(path, options=options) for path in paths]
    read, sizes = joined(parts), tuple(map(len, parts))
    rows: Sequence[int] = drawn(range(len(read)), section.max_train_samples, seed)
    held: set[int] = set()
    if share := section.validation_share:
        held = {rows[place] for place in _held_out(joined(parts, rows), share, seed)}
    left = [row for row in rows if row not in held]
    held_out = list(read_samples(validate, options=options)) if validate else [read[row] for row in sorted(held)]
    if validate:
        _check_apart(joined(parts, left), held_out)
    pictures = SampleColumns.of(read).pictures if section.text is not None else None
    chosen = mixed(left, section, sizes, lambda row: pictures is not None and bool(pictures[row]), seed)
    source = source_of(sizes)
    counted = Counter(source(row) for row in left)
    available = tuple(counted[number] for number in range(len(sizes)))
    sources = SampleSources(tuple(section.train), sizes, available, chosen)
    return TrainingData(joined(parts, chosen), held_out, sources)


def split(samples: Sequence[Sample], share: float, seed: int) -> TrainingData:
    """Return `samples` in their order, about a `share` of them held out, at least one: drawn with `seed`.

    Samples that show a picture with the same bytes, or without pictures say the same, stay together. Of those with
    pictures and of those without the share is alike.

    Raises:
        DataError: nothing is left to train on.
    """
    chosen = _held_out(samples, share, seed)
    left = [sample for index, sample in enumerate(samples) if index not in chosen]
    return TrainingData(left, [samples[index] for index in sorted(chosen)])


def _held_out(samples: Sequence[Sample], share: float, seed: int) -> set[int]:
    """Return which samples are held out; raises as `split`."""
    chance, chosen = random.Random(seed), set[int]()
    pictured, texts = _groups(samples)
    for groups in (pictured, texts):
        chance.shuffle(groups)
        wanted, taken = int(share * sum(map(len, groups)) + 0.5), 0
        for group in groups:
            if taken + len(group) <= wanted:
                taken += len(group)
                chosen |= set(group)
    # Of few samples the share may be less than one, or less than the samples about one picture.
    usual = max(pictured, texts, key=lambda groups: (len(groups) > 1, sum(map(len, groups))))
    smallest = min(usual, key=len)
    chosen = chosen or set(smallest)
    if len(chosen) == len(samples):
        raise DataError(
            f"data.validate would hold out all of {len(samples)} samples, as those that share a picture or say the"
            " same stay together",
            "a share that leaves samples to train on",
            "choose a smaller share, add samples, or name a file with data.validate=PATH",
        )
    return chosen


def shows_trained(data: TrainingData) -> int:
    """Return how many held-out samples show a picture with the bytes of one that is trained on."""
    trained = {image for images in pictures_shown(data.samples) for image in images}
    copies = first_copies([*trained, *(image for sample in data.held_out for image in sample.images)])
    known = {copies[image] for image in trained}
    return sum(any(copies[image] in known for image in sample.images) for sample in data.held_out)


def check_metric(metric: str, pictured: int, texts: int) -> None:
    """Return if held-out samples, so many with a picture and without, have a kind that `metric` is measured on.

    Raises:
        TrainingError: none is of its kind.
    """
    if {"visual": not pictured, "text": not texts}.get(metric.partition("_")[0]):
        raise TrainingError(
            f"train.metric_for_best_model is {metric}, and of {pictured + texts} held-out samples {pictured} have a"
            " picture",
            "held-out samples of the kind that is measured",
            "use --set train.metric_for_best_model=loss or exact_match, or add such samples to data.validate",
        )


def _groups(samples: Sequence[Sample]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the numbers of the samples with pictures, those that share one together, and of those without.

    Of the latter those that say the same are together.
    """
    copies = first_copies(image for images in pictures_shown(samples) for image in images)
    parent = {image: image for image in copies.values()}

    def root(image: Picture) -> Picture:
        image = copies[image]
        while parent[image] != image:
            parent[image] = image = parent[parent[image]]
        return image

    for images in pictures_shown(samples):
        for image in images:
            parent[root(image)] = root(images[0])
    pictured: dict[Picture, list[int]] = {}
    texts: dict[bytes, list[int]] = {}
    for index, images in enumerate(pictures_shown(samples)):
        if images:
            pictured.setdefault(root(images[0]), []).append(index)
        else:
            texts.setdefault(turns_digest(samples[index]), []).append(index)
    return list(pictured.values()), list(texts.values())


def _check_apart(samples: Sequence[Sample], held_out: Sequence[Sample]) -> None:
    """Raise if a held-out sample is among those to train on: the same turns about pictures of the same bytes."""
    turns = {sample.messages for sample in held_out}
    same = [sample for sample in samples if sample.messages in turns] if held_out else []
    copies = first_copies(image for sample in (*same, *held_out) for image in sample.images)
    trained = {_content(sample, copies) for sample in same}
    both = [sample for sample in held_out if _content(sample, copies) in trained]
    if both:
        raise DataError(
            f"{len(both)} of {len(held_out)} samples of data.validate are trained on, such as {both[0].id!r}",
            "samples that are not among those of data.train",
            "remove them from one of the two, or hold out a share of the training data with data.validate=2%",
        )


def _content(sample: Sample, copies: Mapping[Picture, Picture]) -> object:
    return sample.messages, tuple(copies[image] for image in sample.images)

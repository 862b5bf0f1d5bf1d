"""Splits training data into a part to train on and a test pack, with no picture in both. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from striate.data.held_out import split
from striate.data.pictures import PictureLimits
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.data.writing.sample_writer import TRAIN_NAME, SampleWriter
from striate.errors import DataError
from striate.storage.atomic import new_folder
from striate.tasks.packs.answer_metrics import Question, item_row, metric_of
from striate.tasks.packs.reader import FILE_NAME, read_pack


@dataclass(frozen=True)
class SplitRecord:
    """What was written.

    Attributes:
        train: samples to train on.
        test: items of the pack.
        pictures: of the pack.
        tasks: metric and number of items of each task.
        cut: items that ask only the first question of their sample.
        systems: items that lack the system turn of their sample.
    """

    train: int
    test: int
    pictures: int
    tasks: dict[str, tuple[str, int]]
    cut: int
    systems: int


def write_split(samples: Sequence[Sample], share: float, seed: int, out: Path, limits: PictureLimits) -> SplitRecord:
    """Return what the new folder `out` holds: about a `share` of the samples as a test pack, the rest to train on.

    Samples that show a picture with the same bytes, or say the same without one, stay on one side. Of those with
    pictures and of those without the share is alike. What is written is read again before the folder takes its name.

    Raises:
        DataError: nothing is left to train on, or a picture can't be used.
        ArtifactError: `out` is not new, or can't be written.
    """
    train, test = parted(samples, share, seed)
    questions = [Question.of(sample) for sample in test]
    with new_folder(out) as folder:
        writer = SampleWriter(folder, limits)
        writer.write(TRAIN_NAME, map(writer.row, train))
        tasks = _tasks(questions, out.name)
        writer.write(FILE_NAME, _items(questions, tasks, writer))
        read_samples(folder / TRAIN_NAME)
        pack = read_pack(folder)
    counts = Counter(item.task for item in pack.items)
    return SplitRecord(
        train=len(train),
        test=len(pack.items),
        pictures=len({picture for item in pack.items for picture in item.images}),
        tasks={name: (metric, counts[name]) for name, metric in sorted(set(tasks.values()))},
        cut=sum(sum(message.role == "user" for message in one.sample.messages) > 1 for one in questions),
        systems=sum(one.sample.messages[0].role == "system" for one in questions),
    )


def parted(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Return the samples to train on and those to test with; no picture's bytes and no text on both sides.

    Raises:
        DataError: nothing is left to train on.
    """
    numbered = [replace(sample, id=str(index)) for index, sample in enumerate(samples)]
    try:
        chosen = {int(one.id) for one in split(numbered, share, seed).held_out}
    except DataError as error:
        raise DataError(
            f"a share of {share:.0%} would take all of {len(samples)} samples, as those that share a picture or say the"
            " same stay together",
            "a share that leaves samples to train on",
            "choose a smaller share, or add samples",
        ) from error
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for index, sample in enumerate(samples):
        sides[index in chosen].append(sample)
    return sides


def _tasks(questions: Sequence[Question], name: str) -> dict[int, tuple[str, str]]:
    """Return task and metric of each question by its number; those of one task have one metric."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault((question.sample.task or name, bool(question.pictures)), []).append(number)
    found: dict[int, tuple[str, str]] = {}
    for (task, pictured), numbers in groups.items():
        metric = metric_of([questions[number] for number in numbers])
        # A task is visual or of text.
        both = (task, not pictured) in groups
        found |= dict.fromkeys(numbers, (f"{task} (text)" if both and not pictured else task, metric))
    return found


def _items(
    questions: Sequence[Question], tasks: dict[int, tuple[str, str]], writer: SampleWriter
) -> Iterator[dict[str, Any]]:
    """Yield the lines of the pack; ids that repeat get a number."""
    seen: Counter[str] = Counter()
    names: set[str] = set()
    for number, question in enumerate(questions):
        sample, (task, metric) = question.sample, tasks[number]
        name = sample.id
        while name in names:
            seen[sample.id] += 1
            name = f"{sample.id} ({seen[sample.id] + 1})"
        names.add(name)
        shown = sample.images[: question.pictures]
        images = {"image": [writer.picture(picture, sample.id) for picture in shown]} if shown else {}
        yield {"id": name, **images, **item_row(question, metric, task)}

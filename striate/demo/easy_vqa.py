"""Converts easy-VQA (Victor Zhou, MIT licence) to a LLaVA-format folder: shapes, colours, yes/no with negations."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from striate.errors import DataError
from striate.progress import Progress, Silent
from striate.storage.made_once import made_once

TRAIN_SAMPLES, HELD_OUT, TEST_PICTURES = 300, 4, 100
HELD_OUT_FILE = "held_out.json"
TASKS = ("shape", "colour", "presence")
SHAPES = ("circle", "rectangle", "triangle")
Row = tuple[str, str, int]


def prepare_easy_vqa(source: Path, target: Path, seed: int = 0, progress: Progress | None = None) -> Path:
    """Return `target`, filled with three files and their pictures from the package's folder `source`.

    300 conversations of three questions train (train.json), 4 about other pictures are measured while training
    (held_out.json); 300 questions about 100 pictures of the test split are asked afterwards (test.jsonl), those about
    one picture side by side, one a task.

    Raises:
        DataError: a file of the package is missing or damaged.
    """
    return made_once(target, partial(_convert, source, seed), progress or Silent())


def _convert(source: Path, seed: int, folder: Path) -> None:
    (folder / "images").mkdir()
    train = _conversations(_rows(source / "train"), random.Random(seed))
    (folder / "train.json").write_text(json.dumps(train[:TRAIN_SAMPLES], indent=1))
    (folder / HELD_OUT_FILE).write_text(json.dumps(train[TRAIN_SAMPLES:], indent=1))
    test = _questions(_rows(source / "test"), random.Random(seed))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    for split, samples in (("train", train), ("test", test)):
        _copy_pictures(source / split / "images", folder, samples)


def task_of(answer: str) -> str:
    """Return the task that a question with this answer belongs to."""
    if answer in ("yes", "no"):
        return "presence"
    return "shape" if answer in SHAPES else "colour"


def _rows(split: Path) -> list[Row]:
    """Return (question, answer, picture number) of one split, questions with a capital."""
    file = split / "questions.json"
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file) from error
    return [(question[0].upper() + question[1:], answer, picture) for question, answer, picture in rows]


def _conversations(rows: list[Row], rng: random.Random) -> list[dict[str, Any]]:
    """Return training samples, one a picture, each with one question of every task in random order."""
    samples: list[dict[str, Any]] = []
    for turns in islice(_asked(rows, rng), TRAIN_SAMPLES + HELD_OUT):
        conversations = []
        for index, (question, answer, _) in enumerate(turns):
            conversations += [{"from": "human", "value": "<image>\n" * (index == 0) + question}]
            conversations += [{"from": "gpt", "value": answer}]
        picture = turns[0][2]
        name = f"images/train-{picture}.png"
        samples.append({"id": f"easy-vqa-train-{picture}", "image": name, "conversations": conversations})
    return samples


def _questions(rows: list[Row], rng: random.Random) -> list[dict[str, Any]]:
    """Return test items, one of every task about a picture: evaluation reads a picture once for all of them."""
    return [
        {
            "id": f"easy-vqa-test-{task_of(answer)}-{picture}",
            "image": f"images/test-{picture}.png",
            "question": question,
            "answers": [answer],
            "metric": "exact",
            "task": task_of(answer),
        }
        for turns in islice(_asked(rows, rng), TEST_PICTURES)
        for question, answer, picture in turns
    ]


def _asked(rows: list[Row], rng: random.Random) -> Iterator[list[Row]]:
    """Yield a question of every task about one picture after the other, both in random order.

    Pictures without a question of every task are passed over.
    """
    by_picture: dict[int, list[Row]] = {}
    for row in rows:
        by_picture.setdefault(row[2], []).append(row)
    for picture in rng.sample(sorted(by_picture), len(by_picture)):
        turns = _one_of_each(by_picture[picture], rng)
        if len(turns) == len(TASKS):
            yield turns


def _one_of_each(rows: list[Row], rng: random.Random) -> list[Row]:
    by_task = {task: [row for row in rows if task_of(row[1]) == task] for task in TASKS}
    chosen = [rng.choice(candidates) for candidates in by_task.values() if candidates]
    rng.shuffle(chosen)
    return chosen


def _copy_pictures(source: Path, folder: Path, samples: Iterable[dict[str, Any]]) -> None:
    for name in {sample["image"] for sample in samples}:
        picture = source / name.rpartition("-")[2]
        if not picture.is_file():
            raise _damaged(picture)
        shutil.copyfile(picture, folder / name)


def _damaged(file: Path) -> DataError:
    return DataError(
        f"easy-VQA is damaged: {file} is missing or can't be read",
        "the whole package easy-vqa",
        "remove its folder from the cache, so that it is fetched again",
    )

"""What `check` and the report say of data that can be read but misleads."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from striate.artifacts import DataNotes, read_document
from striate.data.samples import Message, Sample
from striate.errors import DataError
from striate.pipeline.model_evaluation import write_data_notes
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.sections.data_notes import draw_notes
from striate.tasks.packs.findings import findings
from striate.tasks.packs.items import Item, Pack


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    for number in range(3):
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(tmp_path / f"{number}.bmp")
    shutil.copy(tmp_path / "0.bmp", tmp_path / "copy.bmp")
    return [*(tmp_path / f"{number}.bmp" for number in range(3)), tmp_path / "copy.bmp"]


def sample(name: str, question: str, answer: str = "red", *images: Path) -> Sample:
    return Sample(name, (Message("user", question), Message("assistant", answer)), images)


def item(name: str, question: str, *answers: str, image: Path | None = None, **more: object) -> Item:
    fields = {"pack": "p", "task": "t", "metric": "exact"} | more
    return Item(id=name, question=question, answers=answers, image=image, **fields)  # type: ignore[arg-type]


def told(samples: list[Sample], *items: Item) -> list[str]:
    return findings(samples, [Pack("p", Path("p"), items)])


def test_items_that_were_trained_on(pictures: list[Path]) -> None:
    first, second, third, copy = pictures
    samples = [
        sample("s0", "<image>\nWhat  colour?", "red", first),
        sample("s1", "<image>\nWhat shape?", "round", second),
        sample("s2", "Is ice cold?", "yes"),
    ]
    items = [
        item("same", "What colour?", "red", image=copy),
        item("other picture", "What colour?", "blue", image=third),
        item("other question", "What size?", "small", image=second),
        item("text", "is ice cold?", "yes"),
    ]
    assert told(samples, *items) == [
        "pack p: 2 of 4 items are in the training data, same picture and question ('same' is sample 's0'): "
        "they measure memory",
        "pack p: 2 of its 3 pictures are in the training data ('copy.bmp' of 'same' is that of sample 's0')",
    ]
    assert told(samples, *items[1:3]) == [
        "pack p: 1 of its 2 pictures are in the training data ('1.bmp' of 'other question' is that of sample 's1')"
    ]
    gone = dataclasses.replace(items[0], image=first.with_name("none.bmp"))
    assert told(samples, gone, items[1]) == []


def test_ids_and_samples_that_repeat() -> None:
    samples = [sample("a", "One?", "1"), sample("a", "Two?", "2"), sample("b", "One?", "1")]
    assert told(samples) == [
        "training data: 2 samples share their id with another, such as 'a'",
        "training data: 1 of 3 samples repeat another one word for word",
    ]
    assert told([sample("a", "One?", "Yes"), sample("b", "Two?", "yes ")]) == [
        "training data: every answer of 2 samples is 'yes'"
    ]
    assert told([], item("a", "One?", "1"), item("a#2", "One?", "1"), item("b", "Two?", "2")) == [
        "pack p: 1 of 3 items repeat another's picture and question",
        "pack p: 1 ids repeat, such as 'a': the second is ID#2",
    ]


def test_tasks_that_a_constant_answers_and_tasks_of_one_item() -> None:
    yes = [item(str(number), f"{number}?", answer, metric="yes_no") for number, answer in enumerate(("Yes", "yes."))]
    letters = [
        item(
            f"l{number}",
            f"Pick {number}: A or B.",
            choices=(f"{number}", "x"),
            answer_index=0,
            metric="letter",
            task="l",
        )
        for number in range(3)
    ]
    shared = [item("u", "U?", "big", "red", task="w"), item("v", "V?", "RED", "wee", task="w")]
    fair = [item("y", "Y?", "a", task="fair"), item("z", "Z?", "b", task="fair")]
    likely = [
        item(f"c{number}", f"C{number}", choices=("a", "b"), answer_index=number, metric="choice_logprob", task="c")
        for number in range(2)
    ]
    text = [item(f"x{number}", "", text=f"words {number}", metric="perplexity", task="x") for number in range(2)]
    assert told([], *yes, *letters, *shared, *fair, *likely, *text, item("q", "Q?", "q", task="alone")) == [
        "pack p: task 'alone' has one item only: such a score says next to nothing",
        "pack p: 'yes' is right for all 2 items of task 't': a constant scores 100%",
        "pack p: 'letter A' is right for all 3 items of task 'l': a constant scores 100%",
        "pack p: 'red' is right for all 2 items of task 'w': a constant scores 100%",
    ]
    assert (
        told([], fair[0], yes[0])[0]
        == "pack p: 2 tasks, such as 'fair', have one item only: such a score says next to nothing"
    )


def test_choices_that_are_there_twice_and_letters_that_are_not_shown() -> None:
    rows = [
        item("a", "A. x B. y", choices=("x", "x"), answer_index=1, metric="letter"),
        item("b", "Which?", choices=("x", "y"), answer_index=0, metric="letter"),
        item("c", "Which one?", choices=("p", "p", "q"), answer_index=2, metric="choice_logprob", task="c"),
        item("d", "Which other?", choices=("r", "s"), answer_index=1, metric="choice_logprob", task="c"),
    ]
    assert told([], *rows) == [
        "pack p: 1 items offer their right choice twice, such as 'a'",
        "pack p: 1 questions ask for a letter and show none, such as 'b'",
    ]


def test_large_data_take_seconds(pictures: list[Path]) -> None:
    samples = [
        sample(str(number), "<image>\nWhat is it?", str(number), pictures[number % 3]) for number in range(20_000)
    ]
    items = [item(str(number), "What is it?", str(number), image=pictures[3]) for number in range(500)]
    begin = time.perf_counter()
    assert told(samples, *items)[0].startswith("pack p: 500 of 500 items are in the training data")
    assert time.perf_counter() - begin < 10


def test_the_report_lists_them() -> None:
    shown = draw_notes(RunArtifacts(Path("run"), notes=DataNotes(lines=("a <b>", "c"))))
    assert str(shown) == '<ul class="missing notes"><li>a &lt;b&gt;</li><li>c</li></ul>'
    assert draw_notes(RunArtifacts(Path("run"))) is None


def test_an_evaluation_outlives_its_training_data(tmp_path: Path) -> None:
    def gone() -> list[Sample]:
        raise DataError("no such file: train.json")

    heard: list[str] = []
    run: Any = SimpleNamespace(path=tmp_path, progress=SimpleNamespace(say=heard.append))
    (tmp_path / "eval").mkdir()
    write_data_notes(run, [Pack("p", Path("p"), (item("a", "One?", "1"),))], gone)
    notes = read_document(tmp_path / "eval" / "data_notes.json", DataNotes)
    assert notes.lines[-1] == "training data: not compared with the packs: no such file: train.json"
    assert heard == [f"note: {line}" for line in notes.lines]

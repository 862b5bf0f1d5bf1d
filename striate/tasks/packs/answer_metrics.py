"""Which metric scores the answers of a task, by what they look like, and the test item of a sample. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from striate.data.samples import Sample
from striate.tasks.metrics.choices.yes_no import said
from striate.tasks.metrics.reading.box_parsing import parse_box

YES_NO = re.compile(r"(?:yes|no)[.!]?", re.IGNORECASE)
LETTER = re.compile(r"\(?([A-H])[.):]?")
OPTION = re.compile(r"^\s*\(?([A-H])[.):]\s*(\S.*?)\s*$", re.MULTILINE)
FEW_WORDS = 8
FEWEST_CHOICES = 2


@dataclass(frozen=True)
class Question:
    """The first exchange of a sample: what a test can ask alike, with the pictures that it shows."""

    sample: Sample
    text: str
    answer: str
    pictures: int

    @classmethod
    def of(cls, sample: Sample) -> Question:
        """Return the first user turn and its answer."""
        first = next(index for index, message in enumerate(sample.messages) if message.role == "user")
        asked, answered = sample.messages[first], sample.messages[first + 1]
        return cls(sample, asked.text, answered.text.strip(), asked.images)


def metric_of(questions: Sequence[Question]) -> str:
    """Return the metric for questions of one task, by the form that all of their answers have.

    `yes_no`, `letter` where each question lists the choices, `iou50` for boxes, `exact` for answers of a few words, and
    `anls`, which compares by edit distance, where one is longer.
    """
    answers = [question.answer for question in questions]
    if all(YES_NO.fullmatch(answer) for answer in answers):
        return "yes_no"
    if all(_lettered(question) for question in questions):
        return "letter"
    if all(question.pictures and parse_box(question.answer) for question in questions):
        return "iou50"
    return "exact" if max(len(answer.split()) for answer in answers) <= FEW_WORDS else "anls"


def item_row(question: Question, metric: str, task: str) -> dict[str, Any]:
    """Return the fields of the test item that asks `question`, besides its id and pictures."""
    row: dict[str, Any] = {"metric": metric, "task": task, "question": question.text}
    if metric == "letter":
        options, index = _lettered(question) or ([], 0)
        return row | {"choices": options, "answer_index": index}
    return row | {"answers": [said(question.answer) if metric == "yes_no" else question.answer]}


def _lettered(question: Question) -> tuple[list[str], int] | None:
    """Return the choices that a question lists and which is right, if its answer is one of their letters."""
    letter = LETTER.fullmatch(question.answer)
    found = OPTION.findall(question.text)
    letters = [name for name, _ in found]
    if not letter or letters != [chr(ord("A") + index) for index in range(len(found))] or letter[1] not in letters:
        return None
    return ([text for _, text in found], letters.index(letter[1])) if len(found) >= FEWEST_CHOICES else None

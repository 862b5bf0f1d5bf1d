"""What samples ask and answer, tallied one at a time: repeats, contradictions, tasks of one answer. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from striate.data.samples import Sample
from striate.printable import shown

# What tables hold where nobody wrote an answer.
BLANKS = frozenset({"n/a", "na", "nan", "none", "null", "nil", "-", "--", ".", "?", "[]", "{}", "tbd", "todo"})
NOT_LETTERS = re.compile(r"[\W\d_]+")
# Of answers numbers count.
NOT_WORDS = re.compile(r"[\W_]+")
UNNAMED = "(no task)"
_MOST_ANSWERS = 1000
_FEW, _NEARLY_ALL = 20, 0.9


@dataclass
class Task:
    """The samples of one task: how many, and how often each of their answers is given, up to a number of answers."""

    samples: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    varied: bool = False

    def add(self, answer: str) -> None:
        """Count one sample."""
        self.samples += 1
        if not self.varied:
            self.answers[answer] += 1
            self.varied = len(self.answers) > _MOST_ANSWERS

    @property
    def monotone(self) -> tuple[str, int] | None:
        """The answer that all samples of the task have, or nearly all of many, and how many; None if there is none."""
        if self.varied or self.samples < 2:
            return None
        answer, count = self.answers.most_common(1)[0]
        enough = count == self.samples or (self.samples >= _FEW and count >= _NEARLY_ALL * self.samples)
        return (answer, count) if enough else None


class AnswerTally:
    """Counts of samples, kept as hashes: a million of them take some hundred megabytes at most."""

    def __init__(self) -> None:
        self.samples = self.answers = self.pictured = self.systems = 0
        self.tasks: dict[str, Task] = {}
        self._repeated = self._alike = self._shared = self._contradicting = self._blank = 0
        self._example: dict[str, str] = {}
        self._ids: set[int] = set()
        self._whole: set[int] = set()
        self._coarse: set[int] = set()
        self._asked: dict[int, int] = {}

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        self.samples += 1
        self.answers += sum(message.role == "assistant" for message in sample.messages)
        self.pictured += bool(sample.images)
        self.systems += sample.messages[0].role == "system"
        self.tasks.setdefault(sample.task or UNNAMED, Task()).add(_plain(sample.answer))
        self._shared += self._again(self._ids, hash(sample.id), "ids", sample)
        whole = hash((sample.messages, sample.images))
        coarse = hash((tuple(NOT_LETTERS.sub(" ", one.text.lower()).strip() for one in sample.messages), sample.images))
        said = hash(NOT_WORDS.sub("", sample.answer.lower()))
        if self._again(self._whole, whole, "repeated", sample):
            self._repeated += 1
        elif self._asked.setdefault(hash((sample.prompt().messages, sample.images)), said) != said:
            self._contradicting += self._note("contradicting", sample)
        elif self._again(self._coarse, coarse, "alike", sample):
            self._alike += 1
        if any(m.role == "assistant" and _plain(m.text) in BLANKS for m in sample.messages):
            self._blank += self._note("blank", sample)
        self._coarse.add(coarse)

    def warnings(self) -> Iterator[str]:
        """Yield a line for everything odd."""
        told = (
            (self._blank, "blank", "samples answer with what stands for nothing, such as n/a or none"),
            (self._repeated, "repeated", "samples repeat another one word for word"),
            (self._alike, "alike", "samples differ from another one in digits, case and punctuation alone"),
            (
                self._contradicting,
                "contradicting",
                "samples ask the same of the same pictures as another, answered else",
            ),
            (self._shared, "ids", "samples share their id with another"),
        )
        for count, kind, words in told:
            if count:
                yield f"{count} of {self.samples} {words}: such as {shown(self._example[kind])}"
        for name, task in self.tasks.items():
            if found := task.monotone:
                which = "all samples" if name == UNNAMED and len(self.tasks) == 1 else f"task {shown(name)}"
                yield f"{which}: {found[1]} of {task.samples} answers are {shown(found[0])}"

    def _again(self, seen: set[int], value: int, kind: str, sample: Sample) -> bool:
        """Return whether `value` was seen before; it now was."""
        if value in seen:
            self._note(kind, sample)
            return True
        seen.add(value)
        return False

    def _note(self, kind: str, sample: Sample) -> int:
        self._example.setdefault(kind, sample.id)
        return 1


def _plain(text: str) -> str:
    return " ".join(text.lower().split())

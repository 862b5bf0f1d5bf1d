"""Which test questions the gallery shows: a spread over tasks and over the ways in which the models differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

from striate.artifacts import Prediction
from striate.reporting.findings import Findings

Item = TypeVar("Item")
RIGHT = 0.5


@dataclass(frozen=True)
class Example:
    """One question with a picture, and every model's answer to it."""

    first: Prediction
    answers: dict[str, Prediction]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The filters that show this example, of `gained`, `lost` and `pruned`."""
        right = {label: is_right(answer) for label, answer in self.answers.items()}
        start, tuned, pruned = right.get("start"), right.get("tuned"), right.get("pruned")
        reference = self.answers.get("tuned") or self.answers.get("start")
        tests = [
            ("gained", start is False and tuned is True),
            ("lost", start is True and tuned is False),
            ("pruned", pruned is not None and reference is not None and is_right(reference) != pruned),
        ]
        return tuple(kind for kind, true in tests if true)


def is_right(answer: Prediction) -> bool:
    """Return whether an answer counts as right: a score of at least one half."""
    return answer.score >= RIGHT


def examples_of(found: Findings) -> list[Example]:
    """Return every picture question that all evaluated models answered."""
    tables = {
        label: {(row.pack, row.task, row.id): row for row in rows if row.image}
        for label, rows in found.predictions.items()
    }
    if not tables:
        return []
    first = next(iter(tables.values()))
    shared = [key for key in first if all(key in table for table in tables.values())]
    return [Example(first[key], {label: table[key] for label, table in tables.items()}) for key in shared]


def choose(examples: Sequence[Example], wanted: int) -> list[Example]:
    """Return at most `wanted` examples, taking turns over packs, over their tasks, and over the kinds of change.

    Pictures that were taken already come last.
    """
    ordered = _spread(examples, [lambda one: one.first.pack, lambda one: one.first.task, lambda one: one.kinds])
    seen: set[str | None] = set()
    fresh: list[Example] = []
    repeated: list[Example] = []
    for example in ordered:
        (repeated if example.first.image in seen else fresh).append(example)
        seen.add(example.first.image)
    return [*fresh, *repeated][:wanted]


def grouped(items: Iterable[Item], key: Callable[[Item], object]) -> list[list[Item]]:
    """Return the items in groups of equal `key`; groups whose key is empty come last."""
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return [groups[name] for name in sorted(groups, key=lambda name: not name)]


def _spread(items: Sequence[Item], keys: Sequence[Callable[[Item], object]]) -> list[Item]:
    """Return the items so that groups of the first key take turns, within each those of the second, and so on."""
    if not keys:
        return list(items)
    return _take_turns([_spread(group, keys[1:]) for group in grouped(items, keys[0])])


def _take_turns(groups: Sequence[Sequence[Item]]) -> list[Item]:
    """Return one of each group, then the next of each, to the end."""
    missing = object()
    rounds = zip_longest(*groups, fillvalue=missing)
    return [item for turn in rounds for item in turn if item is not missing]  # type: ignore[misc]

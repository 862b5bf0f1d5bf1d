"""Choose the questions that the browser holds: all, or first those whose answer changed, spread over tasks."""

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import TypeVar

from striate.reporting.data.correctness import Example

Item = TypeVar("Item")


def choose(examples: Sequence[Example], wanted: int) -> list[Example]:
    """Return at most `wanted` examples, in their own order.

    Where there are more, those on which models differ in being right come first; both kinds take turns over packs and
    over their tasks.
    """
    if len(examples) <= wanted:
        return list(examples)
    keys: list[Callable[[Example], object]] = [lambda example: example.first.pack, lambda example: example.first.task]
    changed = _spread([example for example in examples if example.changed], keys)
    same = _spread([example for example in examples if not example.changed], keys)
    chosen = {id(example) for example in [*changed, *same][:wanted]}
    return [example for example in examples if id(example) in chosen]


def grouped(items: Iterable[Item], key: Callable[[Item], object]) -> list[list[Item]]:
    """Return the items in groups of equal `key`, in the order in which the keys first come."""
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


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

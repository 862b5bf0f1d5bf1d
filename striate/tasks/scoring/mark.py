"""Score replies: one by one, or a whole task together where its metric needs that. No torch."""

from collections.abc import Sequence
from dataclasses import replace

from striate.errors import DataError
from striate.tasks.metrics import METRICS
from striate.tasks.packs.items import Item, Mark, Reply


def check_corpora(items: Sequence[Item]) -> None:
    """Check, before anything is asked, that every metric which scores a task's items together has two or more.

    Raises:
        DataError: it has one.
    """
    for (pack, task, name), places in _tasks(items).items():
        if METRICS.get(name).corpus is not None and len(places) < 2:
            raise DataError(
                f"{pack}/{task} has one item, and metric {name!r} weighs words by how few items have them",
                f"two items or more of metric {name!r}",
                "raise evaluate.limit, or use another metric",
            )


def mark_all(items: Sequence[Item], replies: Sequence[Reply]) -> list[Mark]:
    """Return the score of every reply, in the order of `items`.

    Items of one pack, task and metric are scored together if the metric has a `corpus` function.

    Raises:
        DataError: a metric that needs a package which is not installed.
    """
    marks: dict[int, Mark] = {}
    for (_, _, name), places in _tasks(items).items():
        metric = METRICS.get(name)
        chosen = [(items[place], _spoken(replies[place])) for place in places]
        if metric.corpus is None:
            task_marks = [metric.function(item, reply) for item, reply in chosen]
        else:
            task_marks = metric.corpus([item for item, _ in chosen], [reply for _, reply in chosen])
        marks.update(zip(places, task_marks, strict=True))
    return [marks[index] for index in range(len(items))]


def _spoken(reply: Reply) -> Reply:
    """Return the reply without reasoning before its answer, which some chat templates have every answer begin with."""
    return replace(reply, text=reply.text.rpartition("</think>")[2]) if "</think>" in reply.text else reply


def _tasks(items: Sequence[Item]) -> dict[tuple[str, str, str], list[int]]:
    tasks: dict[tuple[str, str, str], list[int]] = {}
    for index, item in enumerate(items):
        tasks.setdefault((item.pack, item.task, item.metric), []).append(index)
    return tasks

"""One evaluation of several seeds: every item's score averaged, so that intervals are over items alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from striate.artifacts import EvalRecord, Prediction
from striate.tasks.scoring.compare import macro_average, task_scores

Evaluation = tuple[EvalRecord, Sequence[Prediction]]
ItemKey = tuple[str, str, str]


def item_key(item: Prediction) -> ItemKey:
    """Return what an item is known by."""
    return item.pack, item.task, item.id


def seed_average(runs: Sequence[Evaluation], repetitions: int = 0) -> tuple[EvalRecord, list[Prediction]]:
    """Return one evaluation with every item's score averaged over `runs`; of items that all of them answered.

    Args:
        runs: one a seed.
        repetitions: of the bootstrap where a task needs one.
    """
    record, first = runs[0]
    scores: dict[ItemKey, list[float]] = {}
    for _, answers in runs:
        for one in answers:
            scores.setdefault(item_key(one), []).append(one.score)
    means = [
        one.model_copy(update={"score": statistics.fmean(scores[item_key(one)])})
        for one in first
        if len(scores[item_key(one)]) == len(runs)
    ]
    tasks = tuple(task_scores(means, repetitions, 0))
    changed = {"tasks": tasks, "visual": macro_average(tasks, "visual"), "text": macro_average(tasks, "text")}
    return EvalRecord(**{**record.model_dump(), **changed}), means

"""One evaluation of several seeds: every item's score averaged, so that intervals are over items alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from striate.artifacts import EvalRecord, Prediction
from striate.tasks.scoring.compare import macro_average, task_scores


def averaged(runs: Sequence[dict[str, Any]], bootstrap: int) -> tuple[EvalRecord, list[Prediction]]:
    """Return one evaluation with every item's score averaged over the seeds."""
    first = [Prediction(**one) for one in runs[0]["predictions"]]
    scores: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        for one in run["predictions"]:
            scores.setdefault((one["pack"], one["task"], one["id"]), []).append(one["score"])
    means = [one.model_copy(update={"score": statistics.fmean(scores[one.pack, one.task, one.id])}) for one in first]
    tasks = tuple(task_scores(means, bootstrap, 0))
    changed = {"tasks": tasks, "visual": macro_average(tasks, "visual"), "text": macro_average(tasks, "text")}
    return EvalRecord(**{**runs[0]["record"], **changed}), means

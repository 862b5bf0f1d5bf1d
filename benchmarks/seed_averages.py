"""One evaluation of several seeds, from the dictionaries that studies write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from striate.artifacts import EvalRecord, Prediction
from striate.tasks.scoring.seed_average import seed_average


def averaged(runs: Sequence[dict[str, Any]], bootstrap: int) -> tuple[EvalRecord, list[Prediction]]:
    """Return one evaluation with every item's score averaged over the seeds."""
    read = [(EvalRecord(**run["record"]), [Prediction(**one) for one in run["predictions"]]) for run in runs]
    return seed_average(read, bootstrap)

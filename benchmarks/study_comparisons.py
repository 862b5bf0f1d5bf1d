"""Comparisons of the region study's arms over the tasks that count: items averaged over seeds, paired by item."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from study_arms import ALL, Arm, Study, arm_called
from study_bars import counts

from striate.artifacts import Difference, Kind, Prediction
from striate.errors import ArtifactError
from striate.pipeline.sweeps.plan import Planned
from striate.tasks.scoring.compare import MACRO, compare_predictions, macro_average, task_key, task_scores
from striate.tasks.scoring.seed_average import Evaluation, item_key, seed_average

_REPETITIONS = 2000


class Comparisons:
    """What runs of a study score, and keep of others, over the tasks that count."""

    def __init__(self, study: Study) -> None:
        """Read the answers of all layers, with and without pictures, and which tasks count by them.

        Raises:
            ArtifactError: no run of all layers is done, or none was asked without its pictures.
        """
        self.study, self.whole = study, arm_called(study, ALL)
        floor = self._floor(self.whole.chosen)
        if not floor:
            raise ArtifactError(
                f"{study.folder}: no run of {ALL} at its best rate was asked without its pictures",
                "runs with eval/floor, which says which tasks count",
                "set evaluate.floor: true, and run the sweep again",
            )
        self.tasks = _tasks(seed_average(self._answers(self.whole.chosen))[1], floor)
        self._left_out = {(task["pack"], task["task"], task["metric"]) for task in self.tasks if not task["counts"]}

    def rows(self, base: Sequence[Planned], other: Sequence[Planned]) -> dict[str, Difference]:
        """Return `other` against `base`: `visual` and `text` for the means, PACK/TASK for one task.

        Visual rows tell what is kept above the floor where the runs of `base` were asked for it.

        Raises:
            ArtifactError: the two did not answer the same items.
        """
        whole, some = (self._counted(seed_average(self._answers(runs))) for runs in (base, other))
        asked = {item_key(one) for one in whole[1]}
        floor = [one for one in self._floor(base) if item_key(one) in asked]
        rows = compare_predictions(whole, some, _REPETITIONS, 0, floor)
        return {row.task if row.pack == MACRO else f"{row.pack}/{row.task}": row for row in rows}

    def scores(self, runs: Sequence[Planned], kind: Kind) -> dict[str, Any] | None:
        """Return the mean score of runs over the tasks of a kind, in %, and its spread over seeds; None without any."""
        means = [mean for run in runs if (mean := self._mean(run, kind)) is not None]
        if not means:
            return None
        spread = statistics.stdev(means) if len(means) > 1 else None
        return {"mean": statistics.fmean(means), "by_seed": means, "sd": spread}

    def spread_of_difference(self, base: Arm, other: Arm) -> float | None:
        """Return the standard deviation, over the seeds that two arms share, of their difference in points.

        None of fewer than two seeds.
        """
        means = [{run.seed: self._mean(run, "visual") for run in arm.chosen} for arm in (base, other)]
        shared = sorted(means[0].keys() & means[1].keys())
        pairs = [(means[0][seed], means[1][seed]) for seed in shared]
        found = [second - first for first, second in pairs if first is not None and second is not None]
        return statistics.stdev(found) if len(found) > 1 else None

    def _mean(self, run: Planned, kind: Kind) -> float | None:
        answers = self._counted(self.study.answers(run.name))[1]
        mean = macro_average(task_scores(answers, 0, 0), kind)
        return None if mean is None else 100 * mean

    def _answers(self, runs: Sequence[Planned]) -> list[Evaluation]:
        return [self.study.answers(run.name) for run in runs]

    def _floor(self, runs: Sequence[Planned]) -> list[Prediction]:
        blind = self.study.floors(runs)
        return seed_average(blind)[1] if blind else []

    def _counted(self, answered: Evaluation) -> Evaluation:
        """Return an evaluation without the answers to tasks that do not count."""
        record, answers = answered
        return record, [one for one in answers if (one.pack, one.task, one.metric) not in self._left_out]


def _tasks(answers: Sequence[Prediction], floor: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return the tasks with pictures: what all layers score, with and without these, and whether each counts."""
    blind = {(one.pack, one.task, one.metric): 100 * one.score for one in task_scores(floor, 0, 0)}
    visual = [one for one in answers if task_key(one)[3] == "visual"]
    found = []
    for one in task_scores(visual, 0, 0):
        score, without = 100 * one.score, blind.get((one.pack, one.task, one.metric))
        row = {"pack": one.pack, "task": one.task, "metric": one.metric, "score": score, "floor": without}
        sees = without is not None and counts(score, without, one.n)
        found.append({**row, "counts": sees, "items": one.n, "pictures": one.clusters})
    return found

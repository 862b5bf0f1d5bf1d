"""Layer scores as tables, in plain Python: ranks, agreement between scorers, comparison of two runs, tidy rows.

- `ranks`: 1 for the highest score; equal scores share their mean rank.
- `spearman`: rank correlation of two score lists; None where one of them has no order.
- `agreement`: the matrix of rank correlations between scorers, on all samples or on one task.
- `compare_scores`: how far two runs rank the layers alike, scorer by scorer, and which layers moved most.
- `tidy_rows`: one row per scorer, task, part and layer, for CSV and JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from striate.artifacts import LayerScores, Scores
from striate.errors import ArtifactError

ALL = "all"
"""The task of scores on all samples, and the part of scores on all kinds of tokens."""


@dataclass(frozen=True)
class ScoreRow:
    """One layer's score by one scorer, on one task's samples and one kind of token, with its 95% interval."""

    scorer: str
    task: str
    part: str
    layer: int
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Agreement:
    """Rank correlations between scorers: `matrix[i][j]` is that of `scorers[i]` and `scorers[j]`, None if undefined."""

    scorers: tuple[str, ...]
    matrix: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Move:
    """A layer's rank by one scorer in two runs; 1 is the most important layer, and halves are shared ranks."""

    layer: int
    first: float
    second: float

    @property
    def distance(self) -> float:
        """How many ranks the layer moved."""
        return abs(self.second - self.first)


@dataclass(frozen=True)
class ScorerComparison:
    """One scorer in two runs: Spearman's rank correlation over layers, and all layers, those that moved most first."""

    scorer: str
    rank_correlation: float | None
    moves: tuple[Move, ...]


def ranks(values: Sequence[float]) -> tuple[float, ...]:
    """Return each value's rank: 1 for the highest; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda index: -values[index])
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for index in order[start : end + 1]:
            found[index] = (start + end) / 2 + 1
        start = end + 1
    return tuple(found)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, -1 to 1: Pearson's correlation of the ranks, ties at their mean rank.

    None where it is undefined: all values of one list are equal, or there are fewer than two.

    Raises:
        ValueError: the lists are not of one length.
    """
    pairs = list(zip(ranks(first), ranks(second), strict=True))
    if len(pairs) < 2:
        return None
    middle = (len(pairs) + 1) / 2
    covariance = sum((a - middle) * (b - middle) for a, b in pairs)
    spread = math.sqrt(sum((a - middle) ** 2 for a, _ in pairs) * sum((b - middle) ** 2 for _, b in pairs))
    return max(-1.0, min(1.0, covariance / spread)) if spread else None


def agreement(scores: Scores, task: str | None = None) -> Agreement:
    """Return how far the scorers rank the layers alike, on all samples or on those of `task`.

    Raises:
        ArtifactError: that task was not scored.
    """
    entries = entries_of(scores, task)
    matrix = tuple(tuple(spearman(one.values, other.values) for other in entries) for one in entries)
    return Agreement(tuple(entry.scorer for entry in entries), matrix)


def entries_of(scores: Scores, task: str | None = None) -> tuple[LayerScores, ...]:
    """Return the layer scores of every scorer, on all samples or on those of `task`.

    Raises:
        ArtifactError: that task was not scored.
    """
    if task is None:
        return scores.scorers
    if task not in scores.tasks:
        raise ArtifactError(
            f"no scores of task {task!r} here",
            ", ".join(scores.tasks) or "no task was scored apart",
            "run `striate analyze --by task` on samples of that task",
        )
    return scores.tasks[task]


def compare_scores(first: Scores, second: Scores, task: str | None = None) -> tuple[ScorerComparison, ...]:
    """Return, for every scorer that both runs have, how far they rank the layers alike.

    Raises:
        ArtifactError: the runs are of models with different numbers of layers, or share no scorer, or one of them
            did not score `task`.
    """
    if first.num_layers != second.num_layers:
        raise ArtifactError(
            f"the first run scored {first.num_layers} layers, and the second {second.num_layers}",
            "two runs on models with as many layers",
            "compare runs of the same model, or of models of one depth",
        )
    ones = {entry.scorer: entry.values for entry in entries_of(first, task)}
    others = {entry.scorer: entry.values for entry in entries_of(second, task)}
    shared = [name for name in ones if name in others]
    if not shared:
        raise ArtifactError(
            f"the runs share no scorer: {', '.join(ones)} against {', '.join(others)}",
            "two runs with a scorer in common",
            "add one to analyze.scorers of either and run `striate analyze` again",
        )
    return tuple(_compared(name, ones[name], others[name]) for name in shared)


def _compared(scorer: str, first: Sequence[float], second: Sequence[float]) -> ScorerComparison:
    """Return one scorer's comparison; of layers that moved as far, the one nearer to the input comes first."""
    pairs = enumerate(zip(ranks(first), ranks(second), strict=True))
    moves = sorted((Move(layer, a, b) for layer, (a, b) in pairs), key=lambda move: -move.distance)
    return ScorerComparison(scorer, spearman(first, second), tuple(moves))


def shared_tasks(first: Scores, second: Scores) -> list[str]:
    """Return the tasks that both runs scored apart.

    Raises:
        ArtifactError: there are none.
    """
    shared = [task for task in first.tasks if task in second.tasks]
    if not shared:
        raise ArtifactError(
            f"the runs share no task: {', '.join(first.tasks) or 'none'} against {', '.join(second.tasks) or 'none'}",
            "two runs that scored a task in common apart",
            "run `striate analyze --by task` in both, or compare without --by task",
        )
    return shared


def tidy_rows(scores: Scores) -> list[ScoreRow]:
    """Return every score as a row: all samples first and then each task; all tokens first and then each part.

    `low` and `high` are None where a part has no interval of its own.
    """
    rows: list[ScoreRow] = []
    for task, entries in {ALL: scores.scorers, **scores.tasks}.items():
        for entry in entries:
            for part, (values, low, high) in _bands(entry).items():
                rows.extend(
                    ScoreRow(
                        entry.scorer,
                        task,
                        part,
                        layer,
                        value,
                        low[layer] if low else None,
                        high[layer] if high else None,
                    )
                    for layer, value in enumerate(values)
                )
    return rows


def mean_ranks(lists: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return each layer's mean rank over several score lists (Borda count, 1 = best everywhere)."""
    return tuple(map(fmean, zip(*map(ranks, lists), strict=True)))


def _bands(entry: LayerScores) -> dict[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]:
    """Return values, lower and upper ends by part, that of all tokens first."""
    parts = {
        part: (values, entry.part_low.get(part, ()), entry.part_high.get(part, ()))
        for part, values in entry.parts.items()
    }
    return {ALL: (entry.values, entry.low, entry.high), **parts}

"""Ranks of decoder layers, rank correlation, and the agreement between scorers; no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from striate.artifacts import Scores


@dataclass(frozen=True)
class Agreement:
    """Rank correlations between scorers: `matrix[i][j]` is that of `scorers[i]` and `scorers[j]`, None if undefined."""

    scorers: tuple[str, ...]
    matrix: tuple[tuple[float | None, ...], ...]


def ranks(values: Sequence[float]) -> tuple[float, ...]:
    """Return each value's rank: 1 for the highest; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda index: -values[index])
    mean_places = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for index in order[start : end + 1]:
            mean_places[index] = (start + end) / 2 + 1
        start = end + 1
    return tuple(mean_places)


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


def mean_ranks(lists: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return each layer's mean rank over several score lists (Borda count, 1 = best everywhere)."""
    return tuple(map(fmean, zip(*map(ranks, lists), strict=True)))


def agreement(scores: Scores, task: str | None = None) -> Agreement:
    """Return how far the scorers rank the layers alike, on all samples or on those of `task`.

    Raises:
        ArtifactError: that task was not scored.
    """
    entries = scores.entries(task)
    matrix = tuple(tuple(spearman(entry.values, other.values) for other in entries) for entry in entries)
    return Agreement(tuple(entry.scorer for entry in entries), matrix)

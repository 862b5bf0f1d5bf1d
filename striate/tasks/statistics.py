"""Bootstrap intervals of means, of paired differences, and of retention. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Paired:
    """Two models' scores on the same items of one task, (n,) each, and the items' weights in the task's mean."""

    baseline: Floats
    other: Floats
    weights: Floats

    @classmethod
    def of(cls, baseline: ArrayLike, other: ArrayLike, weights: ArrayLike | None = None) -> Paired:
        """Return the pair as arrays, checked to be of one length; equal weights if none are given."""
        first, second = np.asarray(baseline, dtype=np.float64), np.asarray(other, dtype=np.float64)
        weight = np.ones_like(first) if weights is None else np.asarray(weights, dtype=np.float64)
        if not first.shape == second.shape == weight.shape or first.ndim != 1 or not first.size:
            raise ValueError(f"scores and weights differ in shape: {first.shape}, {second.shape}, {weight.shape}")
        return cls(first, second, weight)

    @property
    def means(self) -> Floats:
        """The two weighted means, (2,): baseline, other."""
        return np.average(np.stack([self.baseline, self.other]), axis=1, weights=self.weights)


def replicate_means(
    columns: ArrayLike, weights: ArrayLike | None, repetitions: int, seed: int | Sequence[int]
) -> Floats:
    """Return the weighted means of `repetitions` bootstrap samples, (repetitions, c).

    Each sample draws n of the n rows with replacement (Efron and Tibshirani 1993, chapter 6), the same rows for every
    column, so that columns stay paired.

    Args:
        columns: scores (n, c), one row an item.
        weights: the items' weights (n,), or None for equal ones.
        repetitions: how many samples.
        seed: of the random numbers; equal seeds give equal samples.
    """
    values = np.asarray(columns, dtype=np.float64)
    n = len(values)
    weight = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    generator = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_ONCE // n)
    means = []
    for begin in range(0, repetitions, step):
        drawn = generator.integers(n, size=(min(step, repetitions - begin), n))
        offsets = np.arange(len(drawn))[:, None] * n
        counts = np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape) * weight
        means.append(counts @ values / counts.sum(axis=1, keepdims=True))
    return np.concatenate(means)


def interval_of(replicates: Floats) -> tuple[float, float]:
    """Return the 2.5% and 97.5% quantiles of `replicates` (R,): the percentile bootstrap interval."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_interval(
    scores: ArrayLike, weights: ArrayLike | None = None, repetitions: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval (low, high) of the weighted mean of `scores` (n,).

    Efron and Tibshirani 1993, section 13.3. One score, or scores that are all equal, give an interval without width.
    """
    values = np.asarray(scores, dtype=np.float64)
    return interval_of(replicate_means(values[:, None], weights, repetitions, seed)[:, 0])


def paired_difference(
    baseline: ArrayLike, other: ArrayLike, weights: ArrayLike | None = None, repetitions: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return mean(other) - mean(baseline) on the same items, with its 95% paired bootstrap interval (low, high)."""
    pairs = [Paired.of(baseline, other, weights)]
    return (difference_of(mean_of(pairs)), *difference_interval(macro_replicates(pairs, repetitions, seed)))


def retention_interval(
    baseline: ArrayLike, other: ArrayLike, weights: ArrayLike | None = None, repetitions: int = 2000, seed: int = 0
) -> tuple[float | None, float | None, float | None]:
    """Return 100 * mean(other) / mean(baseline) in %, with its 95% paired bootstrap interval; see `retention_of`."""
    pairs = [Paired.of(baseline, other, weights)]
    return retention_of(mean_of(pairs), macro_replicates(pairs, repetitions, seed))


def mean_of(pairs: Sequence[Paired]) -> Floats:
    """Return the unweighted average over tasks of the two models' task means, (2,): baseline, other."""
    return np.mean([pair.means for pair in pairs], axis=0)


def macro_replicates(pairs: Sequence[Paired], repetitions: int, seed: int) -> Floats:
    """Return bootstrap samples of `mean_of(pairs)`, (repetitions, 2); items are drawn within each task."""
    total = np.zeros((repetitions, 2))
    for index, pair in enumerate(pairs):
        columns = np.stack([pair.baseline, pair.other], axis=1)
        total += replicate_means(columns, pair.weights, repetitions, [seed, index])
    return total / len(pairs)


def difference_of(means: Floats) -> float:
    """Return other - baseline of `means` (2,)."""
    return float(means[1] - means[0])


def difference_interval(replicates: Floats) -> tuple[float, float]:
    """Return the 95% interval of other - baseline from `replicates` (R, 2)."""
    return interval_of(replicates[:, 1] - replicates[:, 0])


def retention_of(means: Floats, replicates: Floats) -> tuple[float | None, float | None, float | None]:
    """Return 100 * other / baseline in % and its 95% interval, each None where it does not exist.

    There is no retention of a baseline score of 0. There is no interval either when more than 2.5% of the bootstrap
    samples have a baseline of 0: the ratio has then no upper bound (Fieller 1954).
    """
    if means[0] == 0:
        return None, None, None
    retention = float(100 * means[1] / means[0])
    usable = replicates[replicates[:, 0] != 0]
    if len(usable) < len(replicates) * (1 + CONFIDENCE) / 2:
        return retention, None, None
    return (retention, *interval_of(100 * usable[:, 1] / usable[:, 0]))


def perplexity_retention(means: Floats, replicates: Floats) -> tuple[float, float, float]:
    """Return 100 * exp(baseline - other) in % and its 95% interval, from means in nats a token.

    It is the ratio of the baseline's perplexity to the other model's: below 100% the text became less likely.
    """
    low, high = interval_of(100 * np.exp(replicates[:, 0] - replicates[:, 1]))
    return float(100 * np.exp(means[0] - means[1])), low, high

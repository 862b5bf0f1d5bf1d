"""Cluster bootstrap of task means, stratified by tasks that share no picture. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

CONFIDENCE = 0.95
DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Paired:
    """Two models' scores on the same items of one task, (n,) each, with the items' weights and clusters.

    `clusters` names what each item is drawn with: items of one picture share it, also across tasks.
    """

    baseline: Floats
    other: Floats
    weights: Floats
    clusters: tuple[str, ...]

    @classmethod
    def of(
        cls,
        baseline: ArrayLike,
        other: ArrayLike,
        weights: ArrayLike | None = None,
        clusters: Sequence[str] | None = None,
    ) -> Paired:
        """Return the pair as arrays, checked to be of one length; equal weights and an own cluster each if not given.

        Raises:
            ValueError: the lengths differ, or there is nothing.
        """
        first, second = np.asarray(baseline, dtype=np.float64), np.asarray(other, dtype=np.float64)
        weight = np.ones_like(first) if weights is None else np.asarray(weights, dtype=np.float64)
        if not first.shape == second.shape == weight.shape or first.ndim != 1 or not first.size:
            raise ValueError(f"scores and weights differ in shape: {first.shape}, {second.shape}, {weight.shape}")
        # Named by the array itself: no two tasks share one by accident.
        names = tuple(f"{id(first)}/{index}" for index in range(len(first))) if clusters is None else tuple(clusters)
        if len(names) != len(first):
            raise ValueError(f"{len(first)} scores, but {len(names)} clusters")
        return cls(first, second, weight, names)

    @property
    def means(self) -> Floats:
        """The two weighted means, (2,): baseline, other."""
        return np.average(np.stack([self.baseline, self.other]), axis=1, weights=self.weights)


@dataclass(frozen=True)
class Replicates:
    """Bootstrap samples of the two models' (macro-averaged) means, and from how much they were drawn.

    Attributes:
        values: (repetitions, 2): baseline, other.
        clusters: independent units, all strata together.
        strata: sets of tasks that share no unit with each other.
        unseen: the largest share of changed items that leaves no trace in a sample like this one in 2.5% of samples.
    """

    values: Floats
    clusters: int
    strata: int
    unseen: float

    @property
    def single(self) -> bool:
        """Whether every stratum is a single unit: its samples then show no spread at all."""
        return self.clusters <= self.strata

    @property
    def inflation(self) -> float:
        """What the spread of the samples is multiplied by to be that of the mean: `sqrt(G / (G - H))`, H strata."""
        return 1.0 if self.single else math.sqrt(self.clusters / (self.clusters - self.strata))

    @property
    def tail(self) -> float:
        """The share of samples that a 95% interval leaves out on each side: the expanded percentile.

        Percentiles of a bootstrap are too narrow by `sqrt((n - 1) / n)` and know no Student's t; the tail is moved out
        by both (Hesterberg 2015, The American Statistician 69, 371-386, section 3.3).
        """
        if self.single:
            return 0.0
        return NormalDist().cdf(-self.inflation * student_quantile(self.clusters - self.strata))


def student_quantile(free: int, share: float = (1 + CONFIDENCE) / 2) -> float:
    """Return the quantile of Student's t with `free` degrees of freedom.

    Exact for 1 and 2; else the Cornish-Fisher expansion (Abramowitz and Stegun 1964, 26.7.5), within 1%.
    """
    if free == 1:
        return math.tan(math.pi * (share - 0.5))
    if free == 2:
        inner = 2 * share - 1
        return inner * math.sqrt(2 / (1 - inner**2))
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / free**power for power, term in enumerate(terms, start=1))


def macro_replicates(pairs: Sequence[Paired], repetitions: int, seed: int) -> Replicates:
    """Return bootstrap samples of the unweighted mean of the tasks' means.

    Clusters are drawn with replacement, with all of their items, in every task at once (the cluster bootstrap: Field
    and Welsh 2007, Journal of the Royal Statistical Society B 69, 369-390); tasks that share no cluster are strata of
    their own. A sample that holds nothing of a task takes that task's plain mean.
    """
    total = np.zeros((repetitions, 2))
    strata = _strata(pairs)
    clusters = 0
    for index, tasks in enumerate(strata):
        sums, weights = _by_cluster([pairs[task] for task in tasks])
        plain = sums.sum(0) / weights.sum(0)[:, None]
        clusters += len(sums)
        begin = 0
        for counts in _draws(len(sums), repetitions, [seed, index]):
            drawn = (counts @ sums.reshape(len(sums), -1)).reshape(len(counts), -1, 2)
            weight = (counts @ weights)[:, :, None]
            means = np.where(weight > 0, drawn / np.where(weight > 0, weight, 1), plain)
            total[begin : begin + len(counts)] += means.sum(1)
            begin += len(counts)
    smallest = min(len(set(pair.clusters)) for pair in pairs)
    unseen = 1 - ((1 - CONFIDENCE) / 2) ** (1 / (len(pairs) * smallest))
    return Replicates(total / len(pairs), clusters, len(strata), unseen)


def _draws(count: int, repetitions: int, seed: Sequence[int]) -> Iterator[Floats]:
    """Yield how often each of `count` clusters is drawn, (samples, clusters), in blocks; their size changes nothing."""
    generator = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_ONCE // count)
    for begin in range(0, repetitions, step):
        drawn = generator.integers(count, size=(min(step, repetitions - begin), count))
        offsets = np.arange(len(drawn))[:, None] * count
        yield np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def _strata(pairs: Sequence[Paired]) -> list[list[int]]:
    """Return the tasks in sets that share no cluster with each other, each in order."""
    owner: dict[str, int] = {}
    leader = list(range(len(pairs)))

    def lead(task: int) -> int:
        while leader[task] != task:
            task = leader[task]
        return task

    for task, pair in enumerate(pairs):
        for name in set(pair.clusters):
            first = lead(owner.setdefault(name, task))
            low, high = sorted((first, lead(task)))
            leader[high] = low
    groups: dict[int, list[int]] = {}
    for task in range(len(pairs)):
        groups.setdefault(lead(task), []).append(task)
    return list(groups.values())


def _by_cluster(pairs: Sequence[Paired]) -> tuple[Floats, Floats]:
    """Return each cluster's weighted scores (C, tasks, 2) and weights (C, tasks), clusters in order of appearance."""
    rows: dict[str, int] = {}
    for pair in pairs:
        for name in pair.clusters:
            rows.setdefault(name, len(rows))
    sums, weights = np.zeros((len(rows), len(pairs), 2)), np.zeros((len(rows), len(pairs)))
    for task, pair in enumerate(pairs):
        places: Ints = np.array([rows[name] for name in pair.clusters])
        np.add.at(sums[:, task, 0], places, pair.weights * pair.baseline)
        np.add.at(sums[:, task, 1], places, pair.weights * pair.other)
        np.add.at(weights[:, task], places, pair.weights)
    return sums, weights

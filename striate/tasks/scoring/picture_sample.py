"""What a sample of pictures tells of two models' mean scores: covariance, effective size, degrees of freedom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from striate.scores.student_t import CONFIDENCE, student_quantile
from striate.tasks.scoring.paired_scores import Floats, Ints, Paired, clusters_of, totals

NORMAL = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
LEAST_FREE = 7.0
PRIOR = 0.07


@dataclass(frozen=True)
class PictureSample:
    """Two models' macro-averaged means over tasks, with the covariance that drawing other pictures would give.

    Attributes:
        means: baseline, other; (2,).
        covariance: of the two means, (2, 2), over pictures: a picture counts once, with all its items of all tasks.
        gained: the share by which other is above baseline, averaged over items; `lost` the share by which it is below.
        pictures: independent units: pictures, or items without one.
        equivalent: how many pictures of equal weight they are worth (Kish 1965).
        free: degrees of freedom of the covariance; twice as many for independent answers that are right or wrong.
        why_none: why no interval can hold on this sample; empty where one can.
    """

    means: Floats
    covariance: Floats
    gained: float
    lost: float
    pictures: int
    equivalent: float
    free: float
    why_none: str

    @classmethod
    def of(cls, pairs: Sequence[Paired]) -> PictureSample:
        """Return the sample of one task, or of the unweighted mean of several.

        Means are linearised and squared by picture (Binder 1983, International Statistical Review 51, 279-292), each
        divided by 1 - its leverage (Bell and McCaffrey 2002, Survey Methodology 28, 169-181). Tasks of one picture
        each show no spread of their own; they are taken together (collapsed strata: Cochran 1977, section 5A.12).
        """
        task: Ints = np.repeat(np.arange(len(pairs)), [len(pair.baseline) for pair in pairs])
        cluster = clusters_of([names for pair in pairs for names in pair.pictures])
        scores = np.stack([np.concatenate(part) for part in zip(*((p.baseline, p.other) for p in pairs), strict=True)])
        weights = np.concatenate([pair.weights / (pair.weights.sum() * len(pairs)) for pair in pairs])
        means = np.stack([pair.means for pair in pairs], axis=1)
        alone = _units(task, cluster, len(pairs)) == 1
        centres = means.copy()
        centres[:, alone] = means[:, alone].mean(1, keepdims=True) if alone.any() else 0
        share = totals(cluster, weights)
        room = 1 - _leverage(task, cluster, weights, alone) / np.where(share > 0, share, 1)
        errors = np.stack([totals(cluster, weights * row) for row in scores - centres[:, task]])
        usable = room > 1e-9
        covariance = (errors[:, usable] / room[usable]) @ errors[:, usable].T
        change = scores[1] - scores[0]
        plain = len(pairs) == 1 and len(share) == len(task) and np.ptp(weights) == 0
        # Of right and wrong answers the mean tells the variance, so that less is left to estimate.
        free = 2 * _free(share, room) if plain and np.isin(scores, (0.0, 1.0)).all() else _free(share, room)
        return cls(
            means=means.mean(1),
            covariance=covariance,
            gained=float(weights @ np.maximum(change, 0)),
            lost=float(weights @ np.maximum(-change, 0)),
            pictures=len(share),
            equivalent=float(1 / (share**2).sum()),
            free=free,
            why_none=_why_none(len(share), len(pairs), int(alone.sum()), free),
        )

    @property
    def critical(self) -> float:
        """How many standard errors a 95% interval reaches: Student's t."""
        return student_quantile(self.free)

    def variance(self, baseline: float, other: float) -> float:
        """Return the variance of `baseline` x the first mean + `other` x the second."""
        factors = np.array([baseline, other])
        return max(0.0, float(factors @ self.covariance @ factors))

    def size(self, spread: float, variance: float) -> float:
        """Return how many independent items with answers of variance `spread` have a mean of that `variance`.

        It is the sample's size over its design effect (Kish 1965; Korn and Graubard 1998, Survey Methodology 24,
        193-201). A fraction of a picture that differs in everything is added, so that a sample without any spread is
        worth its pictures and no more.
        """
        pictures = self.equivalent
        return (spread + PRIOR / pictures) / (variance + PRIOR / (pictures * (pictures - 1))) + 1


def _units(task: Ints, cluster: Ints, tasks: int) -> Ints:
    """Return how many pictures each task has."""
    pairs = np.unique(cluster * tasks + task)
    return np.bincount(pairs % tasks, minlength=tasks)


def _leverage(task: Ints, cluster: Ints, weights: Floats, alone: NDArray[np.bool_]) -> Floats:
    """Return by picture its weight times the share that it has in the means which its errors are taken from."""
    tasks = len(alone)
    pairs, place = np.unique(cluster * tasks + task, return_inverse=True)
    share = totals(place, weights)
    own = share * tasks / np.where(alone[pairs % tasks], max(1, alone.sum()), 1)
    return totals(pairs // tasks, share * own)


def _free(share: Floats, room: Floats) -> float:
    """Return the degrees of freedom of a sum of squares of errors of equal variance (Satterthwaite 1946)."""
    least = float((share**4 * room).sum())
    return float((share**2 * room).sum() ** 2 / least) if least > 0 else 0.0


def _why_none(pictures: int, tasks: int, alone: int, free: float) -> str:
    if alone == 1 and tasks > 1:
        return "a task with one picture shows no spread"
    if free >= LEAST_FREE:
        return ""
    if pictures > 2 * LEAST_FREE:
        return f"a few of the {pictures} pictures carry most of the weight"
    return "one picture shows no spread" if pictures == 1 else f"{pictures} independent pictures are too few"

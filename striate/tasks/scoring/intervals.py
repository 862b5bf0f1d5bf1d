"""Bootstrap intervals of means, paired differences and retention; McNemar's test. NumPy only.

Intervals are percentiles of a bootstrap over pictures (items without a picture stand for themselves), moved out for
small samples; see `tasks.scoring.bootstrap`. Where no item changed at all, a bootstrap knows no spread: the interval
is then what an exact binomial bound allows (Clopper and Pearson 1934), `1 - 0.025^(1/n)` for n clusters.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from striate.tasks.scoring.bootstrap import CONFIDENCE, Floats, Paired, Replicates, macro_replicates

METHOD = "95%, bootstrap over pictures (items without one singly), expanded percentile"
POWER = 0.8
MOST_UNBOUNDED = (1 - CONFIDENCE) / 2


def bootstrap_interval(
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    repetitions: int = 2000,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
    bounded: bool = False,
) -> tuple[float, float]:
    """Return the 95% interval (low, high) of the weighted mean of `scores` (n,).

    With `bounded`, scores lie between 0 and 1, and so does the interval; equal scores then have an interval too.
    """
    pair = Paired.of(scores, scores, weights, clusters)
    replicates = macro_replicates([pair], repetitions, seed)
    low, high = _quantiles(replicates.values[:, 0], replicates.tail)
    if not bounded:
        return low, high
    spread = replicates.unseen if replicates.single or np.ptp(pair.baseline) == 0 else 0.0
    return max(0.0, low - spread), min(1.0, high + spread)


def mean_of(pairs: Sequence[Paired]) -> Floats:
    """Return the unweighted average over tasks of the two models' task means, (2,): baseline, other."""
    return np.mean([pair.means for pair in pairs], axis=0)


def difference_of(means: Floats) -> float:
    """Return other - baseline of `means` (2,)."""
    return float(means[1] - means[0])


def hidden_change(pairs: Sequence[Paired], replicates: Replicates, bounded: bool = True) -> float:
    """Return how far the true difference may lie from one that shows no spread; 0 where spread was seen.

    None is seen when no item changed, or when there is but one picture. Only scores between 0 and 1 (`bounded`) have
    such a bound.
    """
    unseen = replicates.single or all(np.ptp(pair.other - pair.baseline) == 0 for pair in pairs)
    return replicates.unseen if bounded and unseen else 0.0


def difference_interval(replicates: Replicates, hidden: float = 0.0) -> tuple[float, float]:
    """Return the 95% interval of other - baseline; with `hidden`, wider by it on both sides, within -1 and 1."""
    low, high = _quantiles(replicates.values[:, 1] - replicates.values[:, 0], replicates.tail)
    return (max(-1.0, low - hidden), min(1.0, high + hidden)) if hidden else (low, high)


def resolvable_difference(replicates: Replicates, hidden: float = 0.0) -> float:
    """Return the minimal detectable difference: the smallest true one that such a sample detects with 80% power.

    `(z_0.975 + z_0.8)` standard errors (Cohen 1988, chapter 2), the error from the bootstrap's spread; `hidden` where
    that is nought.
    """
    normal = NormalDist()
    error = float(np.std(replicates.values[:, 1] - replicates.values[:, 0])) * replicates.inflation
    return max(hidden, (normal.inv_cdf((1 + CONFIDENCE) / 2) + normal.inv_cdf(POWER)) * error)


def retention_of(
    means: Floats, replicates: Replicates, hidden: float = 0.0
) -> tuple[float | None, float | None, float | None]:
    """Return 100 * other / baseline in % and its 95% interval, each None where it does not exist.

    There is no retention of a baseline score of 0. There is no interval either when more than 2.5% of the bootstrap
    samples have a baseline of 0: the ratio has then no upper bound (Fieller 1954).
    """
    if means[0] == 0:
        return None, None, None
    retention = float(100 * means[1] / means[0])
    values = replicates.values
    usable = values[values[:, 0] != 0]
    if len(usable) < len(values) * (1 - MOST_UNBOUNDED):
        return retention, None, None
    low, high = _quantiles(100 * usable[:, 1] / usable[:, 0], replicates.tail)
    wider = 100 * hidden / float(means[0])
    return retention, max(0.0, low - wider), high + wider


def perplexity_retention(means: Floats, replicates: Replicates) -> tuple[float, float, float]:
    """Return 100 * exp(baseline - other) in % and its 95% interval, from means in nats a token.

    It is the ratio of the baseline's perplexity to the other model's: below 100% the text became less likely.
    """
    values = replicates.values
    low, high = _quantiles(100 * np.exp(values[:, 0] - values[:, 1]), replicates.tail)
    return float(100 * np.exp(means[0] - means[1])), low, high


def changed_answers(pairs: Sequence[Paired]) -> tuple[int, int] | None:
    """Return how many items went from right to wrong and from wrong to right; None where scores are graded."""
    baseline = np.concatenate([pair.baseline for pair in pairs])
    other = np.concatenate([pair.other for pair in pairs])
    if not np.isin(np.concatenate([baseline, other]), (0.0, 1.0)).all():
        return None
    return int((baseline > other).sum()), int((other > baseline).sum())


def mcnemar(right_to_wrong: int, wrong_to_right: int) -> float:
    """Return the two-sided exact p of two counts of changed answers, under equal chances of both changes.

    McNemar 1947 (Psychometrika 12, 153-157) in its exact form: a binomial test of the changed answers with share 1/2.
    Items are taken as independent: where several ask about one picture, the interval is the safer word.
    """
    changed = right_to_wrong + wrong_to_right
    least = min(right_to_wrong, wrong_to_right)
    logs = [math.lgamma(changed + 1) - math.lgamma(k + 1) - math.lgamma(changed - k + 1) for k in range(least + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value - changed * math.log(2)) for value in logs))


def _quantiles(values: Floats, tail: float) -> tuple[float, float]:
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)

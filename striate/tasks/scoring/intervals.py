"""95% intervals of shares, paired differences and retention that hold for rare changes; McNemar's test.

Scores between 0 and 1 have score intervals, at the number of independent items that the sample of pictures is worth.
Where there are too few pictures for any interval to hold, there is none, and it says why.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from striate.tasks.scoring.paired_scores import Paired
from striate.tasks.scoring.picture_sample import NORMAL, PictureSample
from striate.tasks.scoring.score_tests import Shares, crossing, difference_statistic, ratio_statistic

METHOD = (
    "95%, over pictures (items without one singly): score intervals at the pictures' effective number; "
    "of perplexity, bootstrap-t over pictures"
)
POWER_NORMAL = 0.8416212335729143
NO_BASELINE = "the baseline scores nothing"
WEAK_BASELINE = "the baseline's score can't be told from 0"


@dataclass(frozen=True)
class Interval:
    """The ends of a 95% interval; without any, `why_none` says why no interval can hold."""

    low: float | None = None
    high: float | None = None
    why_none: str = ""

    def scaled(self, factor: float) -> "Interval":
        """Return the interval of `factor` times as much, `factor` positive."""
        if self.low is None or self.high is None:
            return self
        return Interval(self.low * factor, self.high * factor)


def share_interval(sample: PictureSample, model: int = 1) -> Interval:
    """Return the interval of a mean score between 0 and 1: of the other model, or of the baseline (`model` 0).

    Agresti and Coull 1998 (The American Statistician 52, 119-126) at the sample's effective size.
    """
    if sample.why_none:
        return Interval(why_none=sample.why_none)
    share, reach = float(sample.means[model]), sample.critical
    size = sample.size(share * (1 - share), float(sample.covariance[model, model])) + reach**2
    centre = (share * (size - reach**2) + reach**2 / 2) / size
    half = reach * math.sqrt(centre * (1 - centre) / size)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def difference_interval(sample: PictureSample) -> Interval:
    """Return the interval of other - baseline, scores between 0 and 1: Tango's score interval (1998)."""
    if sample.why_none:
        return Interval(why_none=sample.why_none)
    shares, reach = _difference_shares(sample), sample.critical
    difference = shares.gained - shares.lost
    # Turned round, a difference is one of the same kind: what was lost is gained.
    turned = Shares(shares.size, shares.both, shares.lost, shares.gained)
    return Interval(
        -crossing(lambda value: difference_statistic(turned, value) + reach, -difference, 1.0),
        crossing(lambda value: difference_statistic(shares, value) + reach, difference, 1.0),
    )


def retention_interval(sample: PictureSample) -> Interval:
    """Return the interval of 100 * other / baseline, scores between 0 and 1: the score interval of a paired ratio.

    There is none where the baseline's score can't be told from 0: the ratio has then no upper bound (Fieller 1954).
    """
    baseline, other = (float(mean) for mean in sample.means)
    if baseline == 0 or sample.why_none:
        return Interval(why_none=NO_BASELINE if baseline == 0 else sample.why_none)
    ratio, reach = other / baseline, sample.critical
    both = max(0.0, baseline - sample.lost)
    spread = both * (1 - ratio) ** 2 + sample.lost * ratio**2 + sample.gained
    shares = Shares(sample.size(spread, sample.variance(-ratio, 1)), both, sample.gained, sample.lost)
    if not share_interval(sample, 0).low:
        return Interval(why_none=WEAK_BASELINE)
    # On a scale where the ratio r lies at r / (1 + r), so that a bisection reaches both ends alike.
    place = ratio / (1 + ratio)
    low = 1 - crossing(lambda value: reach - ratio_statistic(shares, _odds(1 - value)), 1 - place, 1.0)
    high = crossing(lambda value: ratio_statistic(shares, _odds(value)) + reach, place, 1.0)
    return Interval(100 * _odds(low), 100 * _odds(high))


def resolvable_difference(sample: PictureSample) -> float:
    """Return the minimal detectable difference: the smallest true one that such a sample detects with 80% power.

    `(z_0.975 + z_0.8)` standard errors (Cohen 1988, chapter 2).
    """
    return (NORMAL + POWER_NORMAL) * math.sqrt(sample.variance(-1, 1))


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


def _difference_shares(sample: PictureSample) -> Shares:
    gained, lost = sample.gained, sample.lost
    spread = gained + lost - (gained - lost) ** 2
    return Shares(sample.size(spread, sample.variance(-1, 1)), float(sample.means[0]) - lost, gained, lost)


def _odds(share: float) -> float:
    return share / (1 - share) if share < 1 else math.inf

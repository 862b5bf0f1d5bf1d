"""Retention above the floor: what is kept of the part of a score that comes from the picture. NumPy only.

The floor is the score of the model that is held against, asked without its pictures: a model that sees nothing still
picks a quarter of four choices right, and plain retention counts that as kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from striate.tasks.scoring.intervals import Interval, difference_interval
from striate.tasks.scoring.paired_scores import Floats, Paired
from striate.tasks.scoring.picture_sample import PictureSample
from striate.tasks.scoring.score_tests import crossing

NO_SIGHT = "the score that is held against is not clearly above its floor"


@dataclass(frozen=True)
class AboveFloor:
    """The floor as a score; what is kept above it, in %, with its interval, which says why where there is neither."""

    floor: float
    kept: float | None
    interval: Interval


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def turned(self) -> "Estimate":
        """The same of what counts the other way round."""
        return Estimate(-self.mean, -self.high, -self.low)


def above_floor(pairs: Sequence[Paired], floors: Sequence[Floats]) -> AboveFloor:
    """Return (score - floor) / (baseline - floor) of one task, or of the means over several.

    It is 1 + d / g: d the difference between the two models, g what the baseline gains over its floor, on the same
    items. Both have Tango's score interval over pictures, which has a width where no answer changed. The floor is a
    sample too.

    Args:
        pairs: both models' scores, one entry a task.
        floors: the baseline's scores on the same items without their pictures, (n,) a task.
    """
    base, other = [pair.baseline for pair in pairs], [pair.other for pair in pairs]
    # Of metrics that go beyond 1.
    top = max(1.0, *(float(part.max()) for part in (*base, *other, *floors)))

    def sample(first: Sequence[Floats], second: Sequence[Floats]) -> PictureSample:
        told = zip(pairs, first, second, strict=True)
        return PictureSample.of([Paired(one / top, two / top, pair.weights, pair.pictures) for pair, one, two in told])

    changed, gained, both = sample(base, other), sample(floors, base), sample(floors, other)
    floor = float(gained.means[0]) * top
    change, gain = _estimate(changed), _estimate(gained)
    if change is None or gain is None:
        return AboveFloor(floor, None, Interval(why_none=changed.why_none))
    if gain.low <= 0:
        return AboveFloor(floor, None, Interval(why_none=NO_SIGHT))
    low, high = ratio_interval(change, gain, _correlation(changed, gained, both))
    return AboveFloor(floor, 100 * (1 + change.mean / gain.mean), Interval(100 * (1 + low), 100 * (1 + high)))


def ratio_interval(over: Estimate, under: Estimate, correlation: float) -> tuple[float, float]:
    """Return the 95% interval of a ratio of two means, `under` clearly positive.

    An end r is where the interval of over - r x under ends at nought (Fieller 1954, Journal of the Royal Statistical
    Society B 16, 175-185), which has the variances that the ends of both intervals tell (MOVER: Zou and Donner 2008,
    Statistics in Medicine 27, 1693-1702; of ratios Newcombe 2016, Statistical Methods in Medical Research 25,
    1774-1778).
    """
    return _lower_end(over, under, correlation), -_lower_end(over.turned, under, -correlation)


def _lower_end(over: Estimate, under: Estimate, correlation: float) -> float:
    def least(ratio: float) -> float:
        """Return the lower end of over - ratio x under."""
        one = over.mean - over.low
        other = ratio * (under.high - under.mean if ratio > 0 else under.mean - under.low)
        spread = one**2 + other**2 - 2 * correlation * one * other
        return over.mean - ratio * under.mean - math.sqrt(max(0.0, spread))

    return crossing(least, min(0.0, over.low) / under.low, over.mean / under.mean)


def _estimate(sample: PictureSample) -> Estimate | None:
    interval = difference_interval(sample)
    if interval.low is None or interval.high is None:
        return None
    return Estimate(float(sample.means[1] - sample.means[0]), interval.low, interval.high)


def _correlation(one: PictureSample, other: PictureSample, both: PictureSample) -> float:
    """Return the correlation of two differences over pictures, `both` being their sum."""
    variances = [sample.variance(-1, 1) for sample in (one, other, both)]
    spread = math.sqrt(variances[0] * variances[1])
    return min(1.0, max(-1.0, (variances[2] - variances[0] - variances[1]) / (2 * spread))) if spread > 0 else 0.0

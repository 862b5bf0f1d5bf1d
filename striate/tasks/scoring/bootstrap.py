"""Bootstrap-t interval of a weighted mean over pictures, for scores without bounds. NumPy only."""

from collections.abc import Iterator, Sequence

import numpy as np

from striate.scores.student_t import CONFIDENCE
from striate.tasks.scoring.intervals import Interval
from striate.tasks.scoring.paired_scores import Floats, Pictures, clusters_of, totals

DRAWS_AT_ONCE = 4_000_000
FEWEST_TEXTS = 12
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


def bootstrap_t(values: Floats, weights: Floats, pictures: Sequence[Pictures], repetitions: int, seed: int) -> Interval:
    """Return the 95% interval of the weighted mean of `values` (n,), over pictures.

    Pictures are drawn with replacement, with all of their items (Field and Welsh 2007, Journal of the Royal
    Statistical Society B 69, 369-390); each draw's error is divided by its own standard error (Efron 1981, Canadian
    Journal of Statistics 9, 139-172), so that small samples and skewed scores are allowed for.
    """
    if repetitions < 1:
        return Interval(why_none="nothing was drawn")
    if not np.isfinite(values).all():
        return Interval(why_none="some score is not a number")
    cluster = clusters_of(pictures)
    sums, sizes = totals(cluster, weights * values), totals(cluster, weights)
    if len(sums) < FEWEST_TEXTS:
        return Interval(why_none=f"{len(sums)} independent texts are too few")
    mean = float(sums.sum() / sizes.sum())
    # The sample's own error is the jackknife's (Efron and Stein 1981), which weighs long texts as they deserve.
    error = float(np.linalg.norm((sums - mean * sizes) / (sizes.sum() - sizes)))
    if error < 1e-12 * max(1.0, abs(mean)):
        return Interval(why_none="no text differs from the others")
    drawn = [_mean_and_error(counts, sums, sizes) for counts in _draws(len(sums), repetitions, seed)]
    means, errors = (np.concatenate(part) for part in zip(*drawn, strict=True))
    low, high = np.quantile((means - mean) / np.maximum(errors, 1e-9 * error), TAILS)
    return Interval(float(mean - high * error), float(mean - low * error))


def _mean_and_error(counts: Floats, sums: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Return the weighted mean and its standard error, of each row of `counts`: how often each cluster is drawn."""
    columns = np.stack([sums, sizes, sums**2, sums * sizes, sizes**2], axis=1)
    total, size, squares, products, sizes_squared = (counts @ columns).T
    mean = total / size
    squared = squares - 2 * mean * products + mean**2 * sizes_squared
    return mean, np.sqrt(np.maximum(squared, 0) * len(sums) / (len(sums) - 1)) / size


def _draws(count: int, repetitions: int, seed: int) -> Iterator[Floats]:
    """Yield how often each of `count` clusters is drawn, (samples, clusters), in blocks; their size changes nothing."""
    generator = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_ONCE // count)
    for begin in range(0, repetitions, step):
        drawn = generator.integers(count, size=(min(step, repetitions - begin), count))
        offsets = np.arange(len(drawn))[:, None] * count
        yield np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)

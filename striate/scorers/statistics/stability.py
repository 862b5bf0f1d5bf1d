"""Split-half stability of a ranking of layers, with a Spearman-Brown forecast."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from striate.artifacts import SplitHalf
from striate.scorers.statistics.sums import PartSums

Floats = NDArray[np.float64]
SPLITS = 500
RELIABLE = 0.9
_FEWEST_SAMPLES = 4


def split_half(parts: Sequence[PartSums], seed: int) -> SplitHalf | None:
    """Return how well rankings of layers on two halves of the samples agree; None where that can't be said.

    Samples are split at random 500 times. Of each half the score is worked out as of the whole (mean over tokens, then
    over parts), layers are ranked, and the two rankings compared by Spearman's correlation; the mean over splits is
    given with its 2.5% and 97.5% quantiles. By the Spearman-Brown formula (Spearman 1910, Brown 1910) a ranking on k
    times as many samples as a half has the reliability `k r / (1 + (k - 1) r)`, from which `samples_needed` follows.

    Splits in which a half lacks a part's tokens, or ranks all layers the same, are left out. With fewer than 4 samples
    or 2 layers nothing can be said.
    """
    samples, layers = parts[0].sums.shape
    if samples < _FEWEST_SAMPLES or layers < 2:
        return None
    first_RN = _halves(samples, np.random.default_rng(seed))
    correlation_R = rank_correlation(_means(parts, first_RN), _means(parts, 1 - first_RN))
    known_R = correlation_R[np.isfinite(correlation_R)]
    if not len(known_R):
        return None
    mean = float(known_R.mean())
    low, high = np.quantile(known_R, [0.025, 0.975])
    return SplitHalf(
        rank_correlation=mean, low=float(low), high=float(high), samples_needed=samples_needed(mean, samples / 2)
    )


def samples_needed(correlation: float, samples: float) -> int | None:
    """Return at how many samples a ranking reaches a reliability of 0.9, given that of `samples`; None if at none.

    Solved from the Spearman-Brown formula: `samples * 0.9 (1 - r) / (r (1 - 0.9))`.
    """
    if correlation <= 0:
        return None
    # Rounding must not ask for one more sample than the formula does.
    exact = samples * RELIABLE * (1 - correlation) / (correlation * (1 - RELIABLE))
    return max(1, math.ceil(round(exact, 6)))


def rank_correlation(first_RL: Floats, second_RL: Floats) -> Floats:
    """Return Spearman's correlation between the rows of two tables, shape (R,); NaN where a row has no order.

    It is Pearson's correlation of ranks; equal values share the mean of their ranks.
    """
    a_RL, b_RL = ranks(first_RL), ranks(second_RL)
    a_RL, b_RL = a_RL - a_RL.mean(1, keepdims=True), b_RL - b_RL.mean(1, keepdims=True)
    size_R = np.sqrt((a_RL**2).sum(1) * (b_RL**2).sum(1))
    known_R = np.isfinite(first_RL).all(1) & np.isfinite(second_RL).all(1) & (size_R > 0)
    return np.where(known_R, (a_RL * b_RL).sum(1) / np.where(known_R, size_R, 1.0), np.nan)


def ranks(values_RL: Floats) -> Floats:
    """Return the rank of each entry within its row, from 0 on; equal values share the mean of their ranks."""
    below_RL = (values_RL[:, :, None] > values_RL[:, None, :]).sum(2)
    equal_RL = (values_RL[:, :, None] == values_RL[:, None, :]).sum(2)
    return below_RL + (equal_RL - 1) / 2


def _halves(samples: int, generator: np.random.Generator) -> Floats:
    """Return 1 for the samples in the first half of each split and 0 for the others, shape (R, N)."""
    order_RN = generator.permuted(np.tile(np.arange(samples), (SPLITS, 1)), axis=1)
    return (order_RN < samples // 2).astype(np.float64)


def _means(parts: Sequence[PartSums], chosen_RN: Floats) -> Floats:
    """Return the score on the chosen samples, shape (R, L); NaN where they have no token of some part."""
    return np.mean([mean_of(part, chosen_RN) for part in parts], axis=0)


def mean_of(part: PartSums, times_RN: Floats) -> Floats:
    """Return the mean over tokens with each sample taken `times_RN` times, shape (R, L); NaN where there are none."""
    counts_R1 = (times_RN @ part.counts)[:, None]
    return (times_RN @ part.sums) / np.where(counts_R1 > 0, counts_R1, np.nan)

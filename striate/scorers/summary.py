"""From sums per sample to a score per layer, with its interval."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from striate.artifacts import LayerScores
from striate.errors import DataError, ModelError
from striate.scorers.peaks import peak_of
from striate.scorers.sums import PartSums

REPETITIONS = 2000
_DRAWS_AT_ONCE = 2_000_000
Floats = NDArray[np.float64]


def summarise(scorer: str, parts: Mapping[str, PartSums], seed: int) -> LayerScores:
    """Return the layer scores of `scorer`: the mean over all tokens of each part, then over parts with equal weight.

    The 95% interval is a percentile bootstrap over samples (not tokens: those of one sample are not independent).

    Raises:
        DataError: the calibration set has no token of some part.
        ModelError: some score is not a number.
    """
    for part, sums in parts.items():
        if not sums.counts.sum():
            raise DataError(
                f"{scorer} needs {part} tokens, and the calibration set has none",
                f"samples with {part} tokens",
                "add such samples to data.calibration, or choose another scorer",
            )
    means = {part: sums.sums.sum(0) / sums.counts.sum() for part, sums in parts.items()}
    values_L = np.mean(list(means.values()), axis=0)
    _require_finite(scorer, values_L)
    draws_RL = _draws(list(parts.values()), seed)
    low_L, high_L = np.nanquantile(draws_RL, [0.025, 0.975], axis=0)
    return LayerScores(
        scorer=scorer,
        values=tuple(values_L.tolist()),
        low=tuple(low_L.tolist()),
        high=tuple(high_L.tolist()),
        parts={part: tuple(mean_L.tolist()) for part, mean_L in means.items()} if len(means) > 1 else {},
        samples=len(next(iter(parts.values())).counts),
        tokens={part: int(sums.counts.sum()) for part, sums in parts.items()},
        peak=peak_of(values_L, draws_RL),
    )


def _draws(parts: list[PartSums], seed: int) -> Floats:
    """Return the mean of every resample of the samples, shape (R, L); all parts see the same resamples."""
    samples = len(parts[0].counts)
    generator = np.random.default_rng(seed)
    chunk = max(1, min(REPETITIONS, _DRAWS_AT_ONCE // samples))
    rows = []
    for start in range(0, REPETITIONS, chunk):
        size = min(chunk, REPETITIONS - start)
        times_RN = generator.multinomial(samples, np.full(samples, 1 / samples), size=size).astype(np.float64)
        rows.append(np.mean([_resampled(part, times_RN) for part in parts], axis=0))
    return np.concatenate(rows)


def _resampled(part: PartSums, times_RN: Floats) -> Floats:
    """Return the mean of each resample, shape (R, L); NaN where a resample drew no token of this part."""
    counts_R1 = (times_RN @ part.counts)[:, None]
    return (times_RN @ part.sums) / np.where(counts_R1 > 0, counts_R1, np.nan)


def _require_finite(scorer: str, values_L: Floats) -> None:
    """Raise ModelError where a score is NaN or infinite."""
    broken = np.flatnonzero(~np.isfinite(values_L))
    if len(broken):
        raise ModelError(
            f"{scorer} is not a number at layer {', '.join(map(str, broken.tolist()))}",
            "hidden states without overflow",
            "load the model in float32 or bfloat16 (machine.dtype)",
        )

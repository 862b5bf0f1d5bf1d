"""Turn sums per sample into a score per layer, with its bootstrap interval and its stability."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from striate.artifacts import LayerScores
from striate.errors import DataError, ModelError
from striate.scorers.statistics.peaks import peak_of
from striate.scorers.statistics.stability import mean_of, split_half
from striate.scorers.statistics.sums import PartSums
from striate.scorers.streaming.spans import Spans, span_table
from striate.scores.alike import alike_share
from striate.scores.student_t import FEWEST, expanded_tail

REPETITIONS = 2000
_DRAWS_AT_ONCE = 2_000_000
Floats = NDArray[np.float64]


def summarize(
    scorer: str,
    parts: Mapping[str, PartSums],
    seed: int,
    shown: Sequence[str] = (),
    spans: Spans | None = None,
    bounds: tuple[float, float] | None = None,
) -> LayerScores:
    """Return the layer scores of `scorer`: the mean over all tokens of each part, then over parts with equal weight.

    Intervals are 95% bootstraps over samples (not tokens: those of one sample are not independent), percentiles moved
    out for small samples; all parts see the same resamples. Of fewer than 10 samples with tokens there is no interval.

    Args:
        scorer: its name.
        parts: its sums by part.
        seed: of resamples and splits.
        shown: parts that don't count in the score; they are left out where there is no such token.
        spans: the angles of spans, shape (N, L, L), where the scorer has some.
        bounds: the least and the most that a sample may score: where all score alike at a layer, as of 0 of n answers
            that change, the interval is that of how many may score otherwise.

    Raises:
        DataError: the calibration set has no token of some part that counts.
        ModelError: some score is not a number.
    """
    with_tokens = {part: sums for part, sums in parts.items() if part not in shown or sums.counts.sum()}
    counted = [part for part in with_tokens if part not in shown]
    _require_tokens(scorer, {part: with_tokens[part] for part in counted})
    means = {part: sums.sums.sum(0) / sums.counts.sum() for part, sums in with_tokens.items()}
    values_L = np.mean([means[part] for part in counted], axis=0)
    _require_finite(scorer, values_L)
    draws = _draws(with_tokens, seed)
    draws_RL = np.mean([draws[part] for part in counted], axis=0)
    # The only part that counts is the score itself.
    listed = [part for part in with_tokens if len(counted) > 1 or part not in counted]
    samples = {part: int(np.count_nonzero(sums.counts)) for part, sums in with_tokens.items()}
    bands = {part: _band(draws[part], samples[part], bounds) for part in listed}
    fewest = min(samples[part] for part in counted)
    low, high = _band(draws_RL, fewest, bounds)
    return LayerScores(
        scorer=scorer,
        values=tuple(values_L.tolist()),
        low=low,
        high=high,
        parts={part: tuple(means[part].tolist()) for part in bands},
        part_low={part: band[0] for part, band in bands.items()},
        part_high={part: band[1] for part, band in bands.items()},
        spans=() if spans is None else span_table(spans),
        samples=len(next(iter(with_tokens.values())).counts),
        tokens={part: round(sums.counts.sum()) for part, sums in with_tokens.items()},
        split_half=split_half([with_tokens[part] for part in counted], seed),
        peak=peak_of(values_L, draws_RL, expanded_tail(fewest)) if low else None,
    )


def of_weights(scorer: str, values_L: Floats) -> LayerScores:
    """Return the layer scores of a scorer that reads no samples: intervals without width.

    Raises:
        ModelError: some score is not a number.
    """
    _require_finite(scorer, values_L)
    values = tuple(values_L.tolist())
    return LayerScores(scorer=scorer, values=values, low=values, high=values, samples=0)


def has_tokens(parts: Mapping[str, PartSums], shown: Sequence[str] = ()) -> bool:
    """Return whether every part that counts has some token."""
    return all(bool(sums.counts.sum()) for part, sums in parts.items() if part not in shown)


def _draws(parts: Mapping[str, PartSums], seed: int) -> dict[str, Floats]:
    """Return the mean of every resample of the samples by part, shape (R, L); all parts see the same resamples."""
    samples = len(next(iter(parts.values())).counts)
    generator = np.random.default_rng(seed)
    chunk = max(1, min(REPETITIONS, _DRAWS_AT_ONCE // samples))
    rows: dict[str, list[Floats]] = {part: [] for part in parts}
    for start in range(0, REPETITIONS, chunk):
        size = min(chunk, REPETITIONS - start)
        times_RN = generator.multinomial(samples, np.full(samples, 1 / samples), size=size).astype(np.float64)
        for part, sums in parts.items():
            rows[part].append(mean_of(sums, times_RN))
    return {part: np.concatenate(means) for part, means in rows.items()}


def _band(
    draws_RL: Floats, samples: int, bounds: tuple[float, float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return both ends by layer, or nothing of so few samples that no interval holds."""
    if samples < FEWEST:
        return (), ()
    tail = expanded_tail(samples)
    low_L, high_L = np.nanquantile(draws_RL, [tail, 1 - tail], axis=0)
    if bounds:
        alike_L, others = np.nanmax(draws_RL, axis=0) == np.nanmin(draws_RL, axis=0), 1 - alike_share(samples)
        low_L = np.where(alike_L, low_L - others * (low_L - bounds[0]), low_L)
        high_L = np.where(alike_L, high_L + others * (bounds[1] - high_L), high_L)
    return tuple(low_L.tolist()), tuple(high_L.tolist())


def _require_tokens(scorer: str, parts: Mapping[str, PartSums]) -> None:
    for part, sums in parts.items():
        if not sums.counts.sum():
            raise DataError(
                f"{scorer} needs {part} tokens, and the calibration set has none",
                f"samples with {part} tokens; linear-cka and matrix-entropy need 4 of a kind in a sample, "
                "image-attention text after a picture",
                "add such samples to data.calibration, or choose another scorer",
            )


def _require_finite(scorer: str, values_L: Floats) -> None:
    broken = np.flatnonzero(~np.isfinite(values_L))
    if len(broken):
        raise ModelError(
            f"{scorer} is not a number at layer {', '.join(map(str, broken.tolist()))}",
            "hidden states without overflow",
            "load the model in float32 or bfloat16 (machine.dtype)",
        )

"""What a runner measured for one scorer, on its way to a score per layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from striate.artifacts import LayerScores
from striate.scorers.base import LayerScorer
from striate.scorers.statistics.score_summary import has_tokens, of_weights, summarize
from striate.scorers.statistics.sums import PartSums
from striate.scorers.streaming.spans import Spans


@dataclass(frozen=True)
class Measurement:
    """Sums of one scorer by row (a sample or a pair), or values that follow from weights alone.

    Attributes:
        scorer: whose they are.
        parts: its sums by part.
        spans: the angles of spans, shape (N, L, L), where the scorer has some.
        values: the scores themselves, shape (L,), of a scorer that reads no samples.
        by_sample: whether rows are samples of the calibration set, in its order.
    """

    scorer: LayerScorer
    parts: Mapping[str, PartSums] = field(default_factory=dict)
    spans: Spans | None = None
    values: NDArray[np.float64] | None = None
    by_sample: bool = True

    def summary(self, rows: NDArray[np.intp], seed: int) -> LayerScores:
        """Return the scores on the samples `rows`, in their order; pairs and weights have no samples to choose from."""
        if self.values is not None:
            return of_weights(self.scorer.name, self.values)
        if not self.by_sample:
            return summarize(self.scorer.name, self.parts, seed, self.scorer.shown, bounds=self.scorer.bounds)
        spans = None if self.spans is None else self.spans[rows]
        return summarize(self.scorer.name, self._of(rows), seed, self.scorer.shown, spans, self.scorer.bounds)

    def has_tokens(self, rows: NDArray[np.intp]) -> bool:
        """Return whether the samples `rows` have tokens of every part that counts."""
        return has_tokens(self._of(rows), self.scorer.shown)

    def _of(self, rows: NDArray[np.intp]) -> dict[str, PartSums]:
        return {part: PartSums(sums.sums[rows], sums.counts[rows]) for part, sums in self.parts.items()}

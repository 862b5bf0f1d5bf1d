"""What follows from validation: which step was best so far, and whether training stops early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from striate.config import TrainSection

VALIDATION = "validation"
"""The key of a log's row under which the measurements after its step are."""
TIMES = 10


class Watch:
    """The measurements of a training so far, and what they say; it follows from the log alone.

    Attributes:
        metric: what is compared.
        keeps_best: whether the weights of the best measurement are kept, not those of the last step.
        best: the step of the best measurement, or None.
    """

    best: int | None

    def __init__(self, config: TrainSection, steps: int, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """Take the settings, the steps of the whole training, and the log of those that are done."""
        self.metric = config.metric_for_best_model
        self._patience, self._threshold = config.early_stopping_patience, config.early_stopping_threshold
        self.keeps_best = config.keep == "best"
        self._steps, self._every = steps, config.validate_every or math.ceil(steps / TIMES)
        self.best, self._least, self._waited = None, math.inf, 0
        for row in rows:
            if VALIDATION in row:
                self.add(row["step"], row[VALIDATION])

    def due(self, step: int) -> bool:
        """Return whether there is a measurement after this step."""
        return step % self._every == 0 or step == self._steps

    def add(self, step: int, measured: Mapping[str, float]) -> bool:
        """Take the measurement after a step; return whether it is the best one so far."""
        value = measured[self.metric]
        # Of answers that match there should be many, of loss little.
        value = -value if self.metric.endswith("exact_match") else value
        # As in transformers: what is better by less than the threshold is kept as best, and training may stop for it.
        self._waited = 0 if self._least - value > self._threshold else self._waited + 1
        if not value < self._least:
            return False
        self.best, self._least = step, value
        return True

    @property
    def stops(self) -> bool:
        """Whether as many measurements in a row as `early_stopping_patience` says were not better."""
        return self._patience is not None and self._waited >= self._patience

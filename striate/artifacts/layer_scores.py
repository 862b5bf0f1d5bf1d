"""Layer importance by scorer (`scores.json`), with intervals and the stability of rankings."""

from typing import Literal

from pydantic import Field

from striate.artifacts.base import Document
from striate.errors import ArtifactError


class SplitHalf(Document):
    """How stable a ranking of layers is: Spearman's correlation between rankings on random halves of the samples.

    `samples_needed` is the forecast number of samples at which that correlation reaches 0.9 (Spearman-Brown); None
    where the halves do not agree at all.
    """

    rank_correlation: float
    low: float
    high: float
    samples_needed: int | None = None


class Peak(Document):
    """Where in the stack a scorer peaks, with 95% bootstrap intervals over samples.

    Attributes:
        layer: the layer with the highest score.
        low: the lower end of that layer over resamples.
        high: the upper end.
        share: the share of resamples with the same highest layer, 0 to 1.
        centre: the centre of mass: the mean layer, weighted by the scores above the lowest one.
        centre_low: its lower end.
        centre_high: its upper end.
    """

    layer: int
    low: int
    high: int
    share: float
    centre: float
    centre_low: float
    centre_high: float


class LayerScores(Document):
    """One scorer's importance per layer (higher = keep), with a 95% interval over samples, and parts by modality.

    Scorers that read no samples (weights only) have `samples` 0 and intervals without width; of too few samples to hold
    an interval, `low` and `high` are empty. `part_low` and `part_high` are the intervals of `parts`. `spans[n - 1][l]`,
    where a scorer has spans, is the distance from the input of layer l to the output of layer l + n - 1.
    """

    scorer: str
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    parts: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    part_low: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    part_high: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    spans: tuple[tuple[float, ...], ...] = ()
    samples: int
    tokens: dict[str, int] = Field(default_factory=dict)
    split_half: SplitHalf | None = None
    peak: Peak | None = None


class Scores(Document):
    """Every scorer's layer scores on one model and one calibration set (`scores.json`), of all samples and by task."""

    version: Literal[1] = 1
    num_layers: int
    samples: int
    scorers: tuple[LayerScores, ...]
    tasks: dict[str, tuple[LayerScores, ...]] = Field(default_factory=dict)

    def entries(self, task: str | None = None) -> tuple[LayerScores, ...]:
        """Return the layer scores of every scorer, on all samples or on those of `task`.

        Raises:
            ArtifactError: that task was not scored.
        """
        if task is None:
            return self.scorers
        if task not in self.tasks:
            raise ArtifactError(
                f"no scores of task {task!r} here",
                ", ".join(self.tasks) or "no task was scored apart",
                "run `striate analyze --by task` on samples of that task",
            )
        return self.tasks[task]

    def of(self, scorer: str, task: str | None = None) -> LayerScores:
        """Return the layer scores of `scorer`, on all samples or on those of `task`.

        Raises:
            ArtifactError: the scorer was not run, or not by this task.
        """
        entries = self.entries(task)
        for entry in entries:
            if entry.scorer == scorer:
                return entry
        raise ArtifactError(
            f"no scores of {scorer!r} here",
            ", ".join(entry.scorer for entry in entries) or "no scorer was run",
            f"add {scorer!r} to analyze.scorers and run `striate analyze` again",
        )

"""What stages hand to each other. Documents of evaluation live in a module of their own, and are found here too."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from striate.artifacts.base import Document, DocumentT, read_document, read_lines, write_document, write_lines
from striate.artifacts.eval_records import (
    AskingFacts,
    Difference,
    EvalRecord,
    GateResult,
    GateRow,
    Kind,
    Prediction,
    Retention,
    SuiteRecord,
    TaskScore,
)
from striate.errors import ArtifactError, SpecError

__all__ = [
    "AskingFacts",
    "ComponentCount",
    "Difference",
    "Document",
    "DocumentT",
    "EvalRecord",
    "GateResult",
    "GateRow",
    "Kind",
    "LayerScores",
    "Peak",
    "Prediction",
    "PruneRecord",
    "Region",
    "Resampled",
    "Retention",
    "Scores",
    "SelfTest",
    "SplitHalf",
    "SuiteRecord",
    "TaskScore",
    "TrainRecord",
    "Trainable",
    "read_document",
    "read_lines",
    "write_document",
    "write_lines",
]


class Region(Document):
    """The chosen decoder layers of one LLM (`region.json`): 0-based, sorted, of `num_layers` in all.

    `removable` are layers outside it that its selector gives up, the most redundant first; `prune` takes these first.
    `image_tokens` says where image tokens are computed: in all layers, or in the region and in `image_layers` alone;
    `image_shift` whether they take a constant step in the others.
    """

    version: Literal[1] = 1
    layers: tuple[int, ...]
    num_layers: int = Field(ge=1)
    spec: str
    selector: str = ""
    removable: tuple[int, ...] = ()
    image_tokens: Literal["all", "region"] = "all"
    image_layers: tuple[int, ...] = ()
    image_shift: bool = False

    @model_validator(mode="after")
    def _check(self) -> Region:
        named = (*self.layers, *self.removable, *self.image_layers)
        outside = [layer for layer in named if not 0 <= layer < self.num_layers]
        if outside:
            raise SpecError(
                f"region {self.spec!r} names layer {', '.join(map(str, outside))}, "
                f"but the model has {self.num_layers} layers",
                f"layers 0 to {self.num_layers - 1}",
                "layers are counted from 0; `striate inspect MODEL` shows them",
            )
        if list(self.layers) != sorted(set(self.layers)):
            raise SpecError(
                f"region {self.spec!r} has layers out of order or twice: {list(self.layers)}",
                "each layer once, in rising order",
                "remove the repeats",
            )
        if len({*self.layers, *self.removable}) < len(self.layers) + len(self.removable):
            raise SpecError(
                f"region {self.spec!r} may remove a layer twice, or one of its own: {list(self.removable)}",
                "each removable layer once, and outside the region",
                "choose the region again with `striate select`",
            )
        if list(self.image_layers) != sorted(set(self.image_layers) - set(self.layers)):
            raise SpecError(
                f"image_layers of region {self.spec!r} are {list(self.image_layers)}",
                "each layer once, in rising order, and outside the region",
                "train again, which writes region.json anew",
            )
        return self

    @property
    def ratio(self) -> float:
        """The share of layers inside: `len(layers) / num_layers`."""
        return len(self.layers) / self.num_layers

    @property
    def outside(self) -> tuple[int, ...]:
        """The layers that are not in the region."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.layers)

    @property
    def computing(self) -> tuple[int, ...]:
        """The layers that compute image tokens where not all do: the region and `image_layers`."""
        return tuple(sorted((*self.layers, *self.image_layers)))

    @property
    def passing(self) -> tuple[int, ...]:
        """The layers that image tokens pass unchanged where not all layers compute them."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.computing)

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def __len__(self) -> int:
        return len(self.layers)


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
        low: the 2.5% quantile of that layer over resamples.
        high: the 97.5% quantile.
        share: the share of resamples with the same highest layer, 0 to 1.
        centre: the centre of mass: the mean layer, weighted by the scores above the lowest one.
        centre_low: its 2.5% quantile.
        centre_high: its 97.5% quantile.
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

    Scorers that read no samples (weights only) have `samples` 0 and intervals without width. `part_low` and `part_high`
    are the intervals of `parts`. `spans[n - 1][l]`, where a scorer has spans, is the distance from the input of layer l
    to the output of layer l + n - 1.
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

    def of(self, scorer: str, task: str | None = None) -> LayerScores:
        """Return the layer scores of `scorer`, on all samples or on those of `task`.

        Raises:
            ArtifactError: the scorer was not run, or not by this task.
        """
        if task is not None and task not in self.tasks:
            raise ArtifactError(
                f"no scores of task {task!r} here",
                ", ".join(self.tasks) or "no task was scored apart",
                "run `striate analyze --by task` on samples of that task",
            )
        entries = self.scorers if task is None else self.tasks[task]
        for entry in entries:
            if entry.scorer == scorer:
                return entry
        raise ArtifactError(
            f"no scores of {scorer!r} here",
            ", ".join(entry.scorer for entry in entries) or "no scorer was run",
            f"add {scorer!r} to analyze.scorers and run `striate analyze` again",
        )


class ComponentCount(Document):
    """Parameters of one component of an LVLM (or one decoder layer), and how many of them train."""

    component: str
    total: int
    trainable: int
    tensors: int


class Trainable(Document):
    """What trains, by component and by layer, in counts."""

    method: str
    region: Region
    components: tuple[ComponentCount, ...]
    layers: tuple[ComponentCount, ...]

    @property
    def total(self) -> int:
        """Parameters of the whole model, adapters included."""
        return sum(row.total for row in self.components)

    @property
    def trainable(self) -> int:
        """Parameters that receive updates."""
        return sum(row.trainable for row in self.components)


class Resampled(Document):
    """How the layers of a region took turns: `active` open at a time, others drawn every `every` steps.

    `steps_open` counts the steps in which each layer was open; in each step exactly the open ones received gradients.
    """

    active: int
    every: int
    state: Literal["keep", "drop"]
    steps_open: dict[int, int]


class TrainRecord(Document):
    """How a training run went (`train.json`); `tokens` are those of its samples, `padding` is a share of all slots."""

    version: Literal[1] = 1
    trainable: Trainable
    proof: str
    samples: int
    steps: int
    epochs: float
    first_loss: float
    last_loss: float
    seconds: float
    peak_memory_gib: float
    tokens: int = 0
    padding: float = 0.0
    resampled: Resampled | None = None


class SelfTest(Document):
    """A saved model, reloaded from disk, against the one in memory."""

    prompts: int
    max_logit_difference: float
    cached_equals_uncached: bool


class PruneRecord(Document):
    """Which layers went, where the others are now, and the proof that the result reloads (`prune.json`)."""

    version: Literal[1] = 1
    region: Region
    scorer: str
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    old_to_new: dict[int, int]
    parameters_before: int
    parameters_after: int
    self_test: SelfTest | None = None
    seconds: float = 0.0

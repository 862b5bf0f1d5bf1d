"""What stages hand to each other: small, strict, versioned documents, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from striate.errors import ArtifactError, SpecError
from striate.writing import write_text

Modality = Literal["all", "image", "text"]
Kind = Literal["visual", "text"]


class Document(BaseModel):
    """Base of all artifacts: unknown keys are errors, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


DocumentT = TypeVar("DocumentT", bound=Document)


class Region(Document):
    """The chosen decoder layers of one LLM (`region.json`): 0-based, sorted, of `num_layers` in all."""

    version: Literal[1] = 1
    layers: tuple[int, ...]
    num_layers: int = Field(ge=1)
    spec: str
    selector: str = ""

    @model_validator(mode="after")
    def _check(self) -> Region:
        outside = [layer for layer in self.layers if not 0 <= layer < self.num_layers]
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
        return self

    @property
    def ratio(self) -> float:
        """The share of layers inside: `len(layers) / num_layers`."""
        return len(self.layers) / self.num_layers

    @property
    def outside(self) -> tuple[int, ...]:
        """The layers that are not in the region."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.layers)

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


class TrainRecord(Document):
    """How a training run went (`train.json`)."""

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


class Prediction(Document):
    """One model's answer to one test item, and its score (0 to 1; perplexity items: nats a token)."""

    id: str
    pack: str
    task: str
    metric: str
    question: str
    image: str | None = None
    expected: tuple[str, ...] = ()
    answer: str = ""
    score: float
    weight: float = 1.0
    unparsed: bool = False


class TaskScore(Document):
    """One task's mean score with a 95% bootstrap interval; `unparsed` counts answers that had no readable form."""

    pack: str
    task: str
    metric: str
    kind: Kind
    n: int
    score: float
    low: float
    high: float
    unparsed: int = 0


class EvalRecord(Document):
    """One model's scores on every task (`eval/LABEL.json`)."""

    version: Literal[1] = 1
    label: str
    model: str
    tasks: tuple[TaskScore, ...]
    visual: float | None
    text: float | None
    parameters: int
    num_layers: int
    size_bytes: int = 0
    seconds: float
    peak_memory_gib: float


class Difference(Document):
    """A paired comparison of a model with the baseline on the same items, with a 95% bootstrap interval."""

    label: str
    baseline: str
    pack: str
    task: str
    kind: Kind
    metric: str
    n: int
    baseline_score: float
    score: float
    difference: float
    low: float
    high: float
    retention: float | None
    retention_low: float | None = None
    retention_high: float | None = None


class Retention(Document):
    """All paired comparisons with the baseline (`eval/retention.json`)."""

    version: Literal[1] = 1
    baseline: str
    repetitions: int
    rows: tuple[Difference, ...]


def write_document(path: Path, document: Document) -> None:
    """Write `document` as indented JSON to `path`, whole or not at all."""
    write_text(path, document.model_dump_json(indent=2) + "\n")


def read_document(path: Path, kind: type[DocumentT]) -> DocumentT:
    """Return the `kind` stored at `path`.

    Raises:
        ArtifactError: missing, not JSON, or not of this kind.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"can't read {path}: {error.strerror or error}",
            f"a file that holds a {kind.__name__}",
            "run the stage that writes it first",
        ) from error
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise ArtifactError(
            f"{path} is not a {kind.__name__}: {place}: {first['msg']}",
            f"a file that striate wrote as {kind.__name__}",
            "delete it and run its stage again",
        ) from error


def write_lines(path: Path, documents: Sequence[Document]) -> None:
    """Write `documents` as JSON lines, whole or not at all."""
    write_text(path, "".join(document.model_dump_json() + "\n" for document in documents))


def read_lines(path: Path, kind: type[DocumentT]) -> list[DocumentT]:
    """Return the JSON lines of `path`, each as a `kind`."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [kind.model_validate(json.loads(line)) for line in lines if line]
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"can't read {path}: {error}", f"JSON lines, each a {kind.__name__}", "run the stage that writes it again"
        ) from error

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
    """The chosen decoder layers of one LLM (`region.json`): 0-based, sorted, of `num_layers` in all.

    `removable` are layers outside it that its selector gives up, the most redundant first; `prune` takes these first.
    `image_tokens` says where image tokens are computed: in all layers, or in those of the region alone.
    """

    version: Literal[1] = 1
    layers: tuple[int, ...]
    num_layers: int = Field(ge=1)
    spec: str
    selector: str = ""
    removable: tuple[int, ...] = ()
    image_tokens: Literal["all", "region"] = "all"

    @model_validator(mode="after")
    def _check(self) -> Region:
        outside = [layer for layer in (*self.layers, *self.removable) if not 0 <= layer < self.num_layers]
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


class Prediction(Document):
    """One model's answer to one test item, and its score (0 to 1; perplexity items: nats a token).

    `picture` is a short fingerprint of the picture's content: items that share it are no independent observations.
    """

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
    choices: tuple[str, ...] = ()
    picture: str = ""

    @property
    def cluster(self) -> str:
        """What is drawn as one in a bootstrap: the item's picture, or the item itself where it has none."""
        return self.picture or self.image or f"{self.pack}/{self.id}"


class TaskScore(Document):
    """One task's mean score with a 95% bootstrap interval; `unparsed` counts answers that had no readable form.

    `clusters` counts the pictures (or items without one) that the `n` items come from; `details` holds further figures
    of the metric, such as precision and yes-rate.
    """

    pack: str
    task: str
    metric: str
    kind: Kind
    n: int
    score: float
    low: float
    high: float
    unparsed: int = 0
    clusters: int = 0
    details: dict[str, float] = Field(default_factory=dict)


class AskingFacts(Document):
    """How a model was asked: what it read and wrote, in how many batches, and what was not done twice.

    Attributes:
        items: items asked in this sitting.
        resumed: items whose replies an interrupted sitting had kept.
        seconds: of asking, without scoring.
        prompt_tokens: tokens of the prompts, image tokens included, padding not.
        shared_tokens: those of them that were read once for several items.
        new_tokens: tokens written, up to and without each answer's end.
        batches: passes of a batch from its prompt to its last token.
        largest_batch: the most rows that ran side by side.
        token_budget: the most tokens of a batch, padding and new tokens included, at the end.
        out_of_memory: how often a batch had to be made smaller.
        pictures_encoded: pictures that went through the vision encoder.
        pictures_reused: pictures whose features were kept from an earlier question.
        reuse: how pictures that are asked several times are not encoded again, or why they are.
    """

    items: int
    resumed: int = 0
    seconds: float
    prompt_tokens: int = 0
    shared_tokens: int = 0
    new_tokens: int = 0
    batches: int = 0
    largest_batch: int = 0
    token_budget: int = 0
    out_of_memory: int = 0
    pictures_encoded: int = 0
    pictures_reused: int = 0
    reuse: str = ""

    @property
    def items_per_second(self) -> float:
        """Items of this sitting a second; 0 when all replies were kept."""
        return self.items / self.seconds if self.items and self.seconds else 0.0


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
    asking: AskingFacts | None = None


class Difference(Document):
    """A paired comparison of a model with the baseline on the same items, with a 95% bootstrap interval.

    Attributes:
        clusters: how many pictures (or items without one) the `n` items come from; the bootstrap draws these.
        right_to_wrong: items that only the baseline got right; None where scores are graded.
        wrong_to_right: items that only this model got right; None where scores are graded.
        mcnemar_p: two-sided exact p of these two counts (McNemar 1947); None where scores are graded.
        resolvable: the smallest true difference that a sample like this one tells from none in 80% of repetitions.
    """

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
    clusters: int = 0
    right_to_wrong: int | None = None
    wrong_to_right: int | None = None
    mcnemar_p: float | None = None
    resolvable: float | None = None


class Retention(Document):
    """All paired comparisons with the baseline (`eval/retention.json`); `interval` says how intervals were made."""

    version: Literal[1] = 1
    baseline: str
    repetitions: int
    rows: tuple[Difference, ...]
    interval: str = ""


class GateRow(Document):
    """One model held against one condition of the gate, such as `visual>=99`.

    Attributes:
        condition: the condition as it was written.
        scope: `visual`, `text`, a pack, or PACK/TASK.
        threshold: the least retention, in %.
        retention: the model's retention of the baseline, in %, with its 95% interval `low` to `high`.
        n: items, drawn from `clusters` pictures (or items without one).
        passed: whether the retention reaches the threshold.
        resolvable: whether the whole interval lies on one side of the threshold: the sample is large enough to tell.
        needed_n: items of this kind that would make it so; None where that can't be forecast.
    """

    condition: str
    label: str
    scope: str
    threshold: float
    retention: float | None
    low: float | None = None
    high: float | None = None
    n: int
    clusters: int = 0
    passed: bool
    resolvable: bool
    needed_n: int | None = None


class GateResult(Document):
    """What the gate said of every model (`eval/gate.json`)."""

    version: Literal[1] = 1
    gate: str
    baseline: str
    rows: tuple[GateRow, ...]

    @property
    def passed(self) -> bool:
        """Whether every model meets every condition."""
        return all(row.passed for row in self.rows)


class SuiteRecord(Document):
    """What a harness measured on one model (`eval/suites/LABEL.SUITE.json`).

    Attributes:
        label: what the model is called in the run.
        model: where the model comes from.
        harness: `lm-eval` or `lmms-eval`, in `harness_version`.
        packages: versions of the libraries underneath.
        tasks: as they were asked for; groups count as one.
        task_versions: the harness's version of every task.
        limit: the most items of each task, if any.
        samples: how many items of each task were asked.
        figures: by task, the harness's own metrics with their standard errors.
        seconds: how long it took, without loading the model.
    """

    version: Literal[1] = 1
    label: str
    model: str
    harness: str
    harness_version: str
    packages: dict[str, str]
    tasks: tuple[str, ...]
    task_versions: dict[str, str] = Field(default_factory=dict)
    limit: int | None = None
    samples: dict[str, int]
    figures: dict[str, dict[str, float]]
    seconds: float

    @property
    def suite(self) -> str:
        """The suite as it is written in a config, less its folder."""
        return f"{self.harness}:{','.join(self.tasks)}"


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

"""Evaluation artifacts: predictions, task scores, paired comparisons, gates, and figures of other harnesses."""

from typing import Literal

from pydantic import Field

from striate.artifacts.base import Document

Kind = Literal["visual", "text"]


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
    def pictures(self) -> tuple[str, ...]:
        """The item's pictures by content, or the item itself where it has none: items that share one go together."""
        return tuple(self.picture.split("+")) if self.picture else (self.image or f"{self.pack}/{self.id}",)


class TaskScore(Document):
    """One task's mean score with a 95% interval; `unparsed` counts answers that had no readable form.

    Without an interval, `no_interval` says why none can hold.

    `clusters` counts the pictures (or items without one) that the `n` items come from; `details` holds further figures
    of the metric, such as precision and yes-rate.
    """

    pack: str
    task: str
    metric: str
    kind: Kind
    n: int
    score: float
    low: float | None = None
    high: float | None = None
    no_interval: str = ""
    unparsed: int = 0
    clusters: int = 0
    details: dict[str, float] = Field(default_factory=dict)


class AskingFacts(Document):
    """How a model was asked: what it read and wrote, in how many batches, and what was not done twice.

    Attributes:
        items: items asked in this session.
        resumed: items whose replies an interrupted session had journalled.
        seconds: of asking, without scoring.
        prompt_tokens: tokens of the prompts, image tokens included, padding not.
        shared_tokens: those of them that were read once for several items.
        new_tokens: tokens generated, up to and without each answer's end.
        batches: passes of a batch from its prompt to its last token.
        largest_batch: the most rows that ran side by side.
        token_budget: the most tokens of a batch, padding and new tokens included, at the end.
        out_of_memory: how often a batch had to be made smaller.
        pictures_encoded: pictures that went through the vision encoder.
        pictures_reused: pictures whose features were cached by an earlier question.
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
        """Items of this session a second; 0 when all replies were journalled."""
        return self.items / self.seconds if self.items and self.seconds else 0.0


class EvalRecord(Document):
    """One model's scores on every task (`eval/LABEL.json`).

    `visual` and `text` are the unweighted means over their tasks; `intervals` holds their 95% intervals, by kind, where
    one can hold.
    """

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
    intervals: dict[Kind, tuple[float, float]] = Field(default_factory=dict)


class Difference(Document):
    """A paired comparison of a model with the baseline on the same items, with a 95% interval.

    Attributes:
        no_interval: why the difference, or its retention, has no interval, where one is missing.
        clusters: how many independent pictures (or items without one) the `n` items come from.
        right_to_wrong: items that only the baseline got right; None where scores are graded.
        wrong_to_right: items that only this model got right; None where scores are graded.
        mcnemar_p: two-sided exact p of these two counts (McNemar 1947); None where scores are graded.
        resolvable: the smallest true difference that a sample like this one detects with 80% power.
        floor: the baseline's score without its pictures, where it was asked so.
        above_floor: (score - floor) / (baseline_score - floor), in %, with its 95% interval.
        no_above_floor: why there is none, where the floor was measured.
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
    low: float | None = None
    high: float | None = None
    no_interval: str = ""
    retention: float | None
    retention_low: float | None = None
    retention_high: float | None = None
    clusters: int = 0
    right_to_wrong: int | None = None
    wrong_to_right: int | None = None
    mcnemar_p: float | None = None
    resolvable: float | None = None
    floor: float | None = None
    above_floor: float | None = None
    above_floor_low: float | None = None
    above_floor_high: float | None = None
    no_above_floor: str = ""

    @property
    def kept_above_floor(self) -> "Difference":
        """The same comparison with the retention above the floor in the place of the plain one."""
        changed = {
            "retention": self.above_floor,
            "retention_low": self.above_floor_low,
            "retention_high": self.above_floor_high,
            "no_interval": self.no_above_floor,
        }
        return self.model_copy(update=changed)


class Retention(Document):
    """All paired comparisons with the baseline (`eval/retention.json`); `interval` says how intervals were made.

    Attributes:
        baseline: what `rows` compare every other model with.
        against: by label, the model that another is held against: a pruned model against the tuned one, a tuned model
            against the baseline. It may have been left out of the evaluation.
        held: comparisons of models that are held against another than the baseline.
    """

    version: Literal[1] = 1
    baseline: str
    repetitions: int
    rows: tuple[Difference, ...]
    interval: str = ""
    against: dict[str, str] = Field(default_factory=dict)
    held: tuple[Difference, ...] = ()

    @property
    def labels(self) -> list[str]:
        """Every model but the baseline, in the order of evaluation."""
        return list(dict.fromkeys(row.label for row in self.rows))

    def reference(self, label: str) -> str:
        """Return what the model called `label` is held against; earlier versions did not note it."""
        return self.against.get(label, "tuned" if label in ("pruned", "unhealed") else self.baseline)

    def of(self, label: str) -> tuple[Difference, ...]:
        """Return the comparisons of a model with what it is held against; none where that was not evaluated."""
        reference = self.reference(label)
        return tuple(row for row in (*self.rows, *self.held) if (row.label, row.baseline) == (label, reference))

    def not_held(self) -> dict[str, str]:
        """Return the models that lack a comparison, by label, each with the model that was not evaluated."""
        return {label: self.reference(label) for label in self.labels if not self.of(label)}

    def held_rows(self) -> list[Difference]:
        """Return every model's comparisons with what it is held against, in the order of evaluation."""
        return [row for label in self.labels for row in self.of(label)]


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
        needed_n: items of this kind that tell a true retention which lies `effect` off the threshold in 80% of
            repetitions; None where that can't be forecast. Of earlier versions, without an effect: one that lies where
            the retention was measured, in half of them.
        effect: in points of retention.
        no_interval: why there is no interval, where there is none.
        against: the model that it is held against; empty in earlier versions, which took the baseline.
        above_floor: whether the retention is that above the floor.
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
    effect: float | None = None
    no_interval: str = ""
    against: str = ""
    above_floor: bool = False

    @property
    def what(self) -> str:
        """What it is about, in words."""
        return f"{self.scope}{' above the floor' if self.above_floor else ''}"


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

    def reference(self, row: GateRow) -> str:
        """Return what the model of a row was held against."""
        return row.against or self.baseline


class DataNotes(Document):
    """What is odd about an evaluation's data (`eval/data_notes.json`), a line each."""

    version: Literal[1] = 1
    lines: tuple[str, ...] = ()


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

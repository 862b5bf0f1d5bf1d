"""What a model keeps as layers go (`curve.json`, `trials/`), and how many a gate bears (in `prune.json`)."""

from typing import Literal

from pydantic import Field

from striate.artifacts.base import Document
from striate.artifacts.compensation_record import Compensation
from striate.artifacts.eval_records import Difference, EvalRecord, GateRow, Kind
from striate.artifacts.region import Region
from striate.artifacts.speed_record import SpeedRecord, Spread

AnswerForm = Literal["all", "choice", "written", "perplexity"]


class Trial(Document):
    """One smaller model that was asked and not kept (`trials/*.json`); its predictions lie beside it.

    Attributes:
        key: hash of what the answers follow from.
        removed: the layers that it lacks, in rising order; none for the tuned model.
        healed: whether it was healed.
        record: its scores.
        bytes: of its weights in memory.
        whole_bytes: of the tuned model's.
        compensation: how kept layers stand in for removed ones, if they do.
    """

    version: Literal[1] = 1
    key: str
    removed: tuple[int, ...]
    healed: bool
    record: EvalRecord
    bytes: int
    whole_bytes: int
    compensation: Compensation | None = None


class TrialSpeed(Document):
    """How fast the whole model and one without layers were, one right after the other (`trials/*-speed.json`).

    `key` is a hash of what it follows from.
    """

    version: Literal[1] = 1
    key: str
    whole: SpeedRecord
    smaller: SpeedRecord


class CurveScore(Document):
    """The mean score of one kind of tasks, those whose answers are chosen or written apart.

    Attributes:
        kind: `visual` or `text`.
        answers: `choice` where an answer is one of a few that are given, `written` where it is any text, or `all`; a
            task of `perplexity` stands alone.
        n: items.
        tasks: tasks.
        score: unweighted mean of the tasks' scores, 0 to 1; of perplexity nats a token, the lower the better.
        tuned: against the tuned model, on the same items; None for that model itself.
        start: against the start, where it was evaluated.
    """

    kind: Kind
    answers: AnswerForm
    n: int
    tasks: int
    score: float
    tuned: Difference | None = None
    start: Difference | None = None


class CurvePoint(Document):
    """The model without `count` layers.

    Attributes:
        count: how many layers are gone; 0 is the tuned model itself.
        removed: which, in rising order.
        healed: whether it was trained after that.
        parameters: that are left.
        bytes: of the weights in memory.
        scores: by kind and by how answers are given.
        speed: of the smaller model and, right before, of the tuned one.
    """

    count: int
    removed: tuple[int, ...]
    healed: bool
    parameters: int
    bytes: int
    scores: tuple[CurveScore, ...]
    speed: TrialSpeed | None = None

    def of(self, kind: Kind, answers: AnswerForm = "all") -> CurveScore | None:
        """Return the score of one kind, or None without such tasks."""
        return next((row for row in self.scores if (row.kind, row.answers) == (kind, answers)), None)

    @property
    def prefill(self) -> float:
        """How many times as fast as the tuned model a prompt is read; 0 where that was not measured."""
        times = self.prefill_times
        return times.median if times else 0

    @property
    def decode(self) -> float:
        """How many times as fast as the tuned model tokens are written; 0 where that was not measured."""
        times = self.decode_times
        return times.median if times else 0

    @property
    def prefill_times(self) -> Spread | None:
        """`prefill` with the least and the most that the measurements of both models leave open."""
        if self.speed is None:
            return None
        return _ratio(self.speed.whole.prefill_seconds, self.speed.smaller.prefill_seconds)

    @property
    def decode_times(self) -> Spread | None:
        """`decode` with the least and the most that the measurements of both models leave open."""
        if self.speed is None:
            return None
        return _ratio(self.speed.smaller.decode_tokens_per_second, self.speed.whole.decode_tokens_per_second)


def _ratio(one: Spread, other: Spread) -> Spread:
    return Spread(median=one.median / other.median, low=one.low / other.high, high=one.high / other.low)


class Recommendation(Document):
    """How many layers to remove, of those counts that were tried, and why.

    Attributes:
        keeps: the least retention of the tuned model, in %, by kind.
        count: the largest count that reaches it, together with all smaller ones.
        healed: whether that model was healed.
        text: the same in words, with intervals.
    """

    keeps: dict[Kind, float]
    count: int
    healed: bool
    text: str


class Curve(Document):
    """Quality, size and speed as layers go (`curve.json`), from one ranking.

    Attributes:
        spec: the counts as they were asked for.
        region: layers that stay.
        scorer: what ranked the others.
        compensate: how kept layers stand in for removed ones.
        order: layers in the order in which they go; empty where each count has its own, as of `spaced`.
        packs: the test packs that were asked.
        points: by count, each without and then with healing; the first is the tuned model.
        start: scores of the model that the run began with, where it was evaluated.
        interval: how intervals were made.
        recommendation: how many layers to remove.
    """

    version: Literal[1] = 1
    spec: str
    region: Region
    scorer: str
    compensate: str = "none"
    order: tuple[int, ...] = ()
    packs: tuple[str, ...]
    points: tuple[CurvePoint, ...]
    start: tuple[CurveScore, ...] = ()
    interval: str = ""
    recommendation: Recommendation | None = None

    @property
    def healed(self) -> bool:
        """Whether there are healed models among the points."""
        return any(point.healed for point in self.points)

    def recommends(self, point: CurvePoint) -> bool:
        """Return whether this is the point of the recommendation."""
        best = self.recommendation
        return best is not None and (point.count, point.healed) == (best.count, best.healed)

    def forms(self, kind: Kind) -> list[AnswerForm]:
        """Return how tasks of one kind are told: all, and either form of answers where there are both."""
        there: list[AnswerForm] = [row.answers for row in self.points[0].scores if row.kind == kind]
        shares = [answers for answers in there if answers != "perplexity"]
        return [*(shares if len(shares) > 2 else shares[:1]), *there[len(shares) : len(shares) + 1]]


class UntilTrial(Document):
    """One number of layers held against the gate of `prune.until`."""

    count: int
    removed: tuple[int, ...]
    passed: bool
    rows: tuple[GateRow, ...]


class UntilRecord(Document):
    """How `prune.until` found the number of layers to remove, as part of `prune.json`.

    Attributes:
        gate: its conditions.
        packs: the packs that were asked.
        held_out: whether they are others than those of the evaluation.
        healed: whether models were healed before they were asked.
        most: the most layers that might go.
        count: how many the gate bears, and go.
        stopped_by: conditions that one layer more does not meet; none where `most` was reached.
        trials: in the order in which they were tried.
    """

    gate: str
    packs: tuple[str, ...]
    held_out: bool
    healed: bool
    most: int
    count: int
    stopped_by: tuple[str, ...]
    trials: tuple[UntilTrial, ...] = Field(default=())

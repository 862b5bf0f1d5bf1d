"""What a sweep found (`sweep.json`): how each run went, and a row a group of runs that differ in their seed alone."""

from typing import Any, Literal

from pydantic import Field

from striate.artifacts.base import Document

RunState = Literal["waiting", "running", "done", "failed", "dropped"]


class SweptRun(Document):
    """One run of a sweep.

    Attributes:
        name: of its folder.
        settings: what it changes, by the names of `--set`.
        state: `dropped` where a run that is alike was better after a rung.
        rung: the share of the training that it has, 1 for all of it.
        error: of a run that failed.
        seconds: of a run that ended now, from its begin on.
    """

    name: str
    settings: dict[str, Any]
    state: RunState = "waiting"
    rung: float = 1.0
    error: str = ""
    seconds: float | None = None


class SweptScore(Document):
    """The visual or text score of a group, in % of 100, and what it keeps of the group that others are held against.

    Attributes:
        scores: one a seed.
        mean: of these.
        spread: standard deviation over seeds; None of one.
        kept: retention in %, items averaged over seeds; None where there is nothing to hold it against.
        low: of its 95% interval over items.
        high: the same.
        n: items.
        floor: of the group that others are held against, its score without pictures, in %, where it was asked so.
        above_floor: what is kept above it, in %.
        above_floor_low: of its 95% interval over items.
        above_floor_high: the same.
        no_above_floor: why nothing can be told of it, where the floor was measured.
    """

    scores: tuple[float, ...]
    mean: float
    spread: float | None = None
    kept: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    floor: float | None = None
    above_floor: float | None = None
    above_floor_low: float | None = None
    above_floor_high: float | None = None
    no_above_floor: str = ""


class SweptGroup(Document):
    """Runs that differ in their seed alone, as one model of theirs did.

    Attributes:
        settings: without the seed.
        name: of their row of `runs` or `folders`; rows of a grid have none.
        model: `tuned`, `pruned` or another name of the run.
        runs: names of the runs that are done.
        seeds: of these.
        visual: score on tasks with pictures.
        text: score on tasks without.
        nats: a token of plain text, averaged over texts and seeds; perplexity is e to its power.
        measured: on held-out samples, averaged over seeds.
        train_seconds: of training, averaged.
        peak_memory_gib: of training, the highest.
        parameters: of the model.
        layers: of the model.
        best: whether it is the best of those that differ in what is chosen.
        compared: whether the others are held against it.
    """

    settings: dict[str, Any]
    name: str = ""
    model: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    visual: SweptScore | None = None
    text: SweptScore | None = None
    nats: float | None = None
    measured: dict[str, float] = Field(default_factory=dict)
    train_seconds: float | None = None
    peak_memory_gib: float | None = None
    parameters: int | None = None
    layers: int | None = None
    best: bool = False
    compared: bool = False


class SweepRecord(Document):
    """A sweep so far (`sweep.json`)."""

    version: Literal[1] = 1
    varied: tuple[str, ...]
    chosen_by: str = ""
    runs: tuple[SweptRun, ...]
    groups: tuple[SweptGroup, ...] = ()

    def count(self, state: RunState) -> int:
        """Return how many runs are in a state."""
        return sum(run.state == state for run in self.runs)

"""The table of a sweep: a row a group of runs that differ in their seed alone, read from their run folders."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from striate.artifacts import EvalRecord, Kind, Prediction, SweptGroup, SweptScore, TrainRecord, read_if_there
from striate.config.sweep_settings import SweepConfig
from striate.errors import ArtifactError
from striate.pipeline.model_evaluation import has_floor, read_floors, read_results
from striate.pipeline.sweeps.choosing import Measured, classes_of, ranked
from striate.pipeline.sweeps.plan import Planned
from striate.tasks.scoring.compare import MACRO, compare_predictions
from striate.tasks.scoring.seed_average import Evaluation, seed_average
from striate.wording import PERPLEXITY

_SHARED = ("start",)
_Model = tuple[tuple[str, ...], str]
"""The names of a group's runs, and which model of theirs."""


class Table:
    """What the runs of a sweep reached, as far as they are done."""

    def __init__(self, sweep: SweepConfig, runs: Path) -> None:
        """Read from the run folders in `runs`."""
        self._sweep, self._runs = sweep, runs
        self._answers: dict[tuple[str, str], Evaluation] = {}
        self._scores: dict[tuple[_Model, _Model | None], tuple[SweptScore | None, SweptScore | None]] = {}

    def groups(self, done: Sequence[Planned]) -> tuple[SweptGroup, ...]:
        """Return a row a group and model of the runs that are `done`, in their order."""
        grouped: dict[str, list[Planned]] = {}
        for run in done:
            grouped.setdefault(repr(run.group), []).append(run)
        best = {run.name for run in self.best(done)}
        rows = [(runs, label) for runs in grouped.values() for label in self._labels(runs[0])]
        whole = self._compared(rows, best)
        return tuple(self._row(runs, label, best, whole) for runs, label in rows)

    def best(self, done: Sequence[Planned]) -> list[Planned]:
        """Return the best run of each class of those that differ in what is chosen; none where nothing is."""
        choose = self._sweep.choose
        if choose is None:
            return []
        classes = classes_of(done, choose.over)
        return [order[0] for same in classes if (order := ranked(same, choose, self.measured))]

    @property
    def measured(self) -> Measured:
        """What a run measured on held-out samples by the metric that chooses."""

        def of(run: Planned) -> float | None:
            record = self._trained(run.name)
            choose = self._sweep.choose
            return record.validation.last.get(choose.by) if choose and record and record.validation else None

        return of

    def _labels(self, run: Planned) -> list[str]:
        """Return the models of a run that were asked; one nameless one where none was."""
        files = sorted((self._runs / run.name / "eval").glob("*.predictions.jsonl"))
        labels = [file.name.removesuffix(".predictions.jsonl") for file in files]
        return [label for label in labels if label not in (*_SHARED, *run.config.evaluate.others)] or ["tuned"]

    def _compared(self, rows: Sequence[tuple[list[Planned], str]], best: set[str]) -> tuple[list[Planned], str] | None:
        """Return the group that the others are held against: of those that `compare` picks the best one, or the first.

        A tuned model before a pruned one.
        """
        wanted = self._sweep.compare
        picked = [
            (runs, label)
            for runs, label in sorted(rows, key=lambda row: row[1] != "tuned")
            if wanted and runs[0].has(wanted)
        ]
        chosen = [row for row in picked if any(run.name in best for run in row[0])]
        return next(iter([*chosen, *picked]), None)

    def _row(
        self, runs: list[Planned], label: str, best: set[str], whole: tuple[list[Planned], str] | None
    ) -> SweptGroup:
        evaluations = self._evaluations(runs, label)
        visual, text = self._scored(runs, label, whole)
        compared = whole is not None and whole[0] is runs and whole[1] == label
        if compared:
            visual, text = _of_itself(visual), _of_itself(text)
        trained = [record for run in runs if (record := self._trained(run.name))]
        held_out = [record.validation.last for record in trained if record.validation]
        return SweptGroup(
            settings=runs[0].group,
            name=_common([run.row for run in runs]),
            model=label,
            runs=tuple(run.name for run in runs),
            seeds=tuple(run.seed for run in runs),
            visual=visual,
            text=text,
            nats=_nats([record for record, _ in evaluations]),
            measured={name: statistics.fmean(one[name] for one in held_out) for name in held_out[0]}
            if held_out
            else {},
            train_seconds=statistics.fmean(record.seconds for record in trained) if trained else None,
            peak_memory_gib=max((record.peak_memory_gib for record in trained), default=None),
            parameters=evaluations[0][0].parameters if evaluations else None,
            layers=evaluations[0][0].num_layers if evaluations else None,
            best=any(run.name in best for run in runs),
            compared=compared,
        )

    def _scored(
        self, runs: list[Planned], label: str, whole: tuple[list[Planned], str] | None
    ) -> tuple[SweptScore | None, SweptScore | None]:
        """Return the visual and the text score of a group, worked out once for the runs that it has now."""
        if whole:
            whole = of_seeds(whole[0], runs), whole[1]
        key = _named(runs, label), _named(*whole) if whole else None
        if key not in self._scores:
            evaluations, bases = self._evaluations(runs, label), self._evaluations(*whole) if whole else []
            floor = self._floor(*whole) if whole else []
            self._scores[key] = _score("visual", evaluations, bases, floor), _score("text", evaluations, bases)
        return self._scores[key]

    def _evaluations(self, runs: Sequence[Planned], label: str) -> list[Evaluation]:
        """Return the answers of a group's model, of those runs that have any."""
        return [found for run in runs if (found := self._answered(run.name, label))]

    def _answered(self, name: str, label: str) -> Evaluation | None:
        """Return the answers of a model of a run, read once; None where it has none."""
        if (name, label) not in self._answers and (self._runs / name / "eval" / f"{label}.json").exists():
            self._answers[name, label] = read_results(self._runs / name, [label])[label]
        return self._answers.get((name, label))

    def _floor(self, runs: Sequence[Planned], label: str) -> list[Prediction]:
        """Return what a model answered without pictures, averaged over runs; nothing where one was not asked so."""
        places = [self._runs / run.name for run in runs]
        asked = all(run.config.evaluate.floor for run in runs) and all(has_floor(place, label) for place in places)
        answered = self._evaluations(runs, label)
        if not asked or len(answered) < len(runs):
            return []
        blind = [read_floors(place, [label])[label] for place in places]
        return seed_average([(record, floor) for (record, _), floor in zip(answered, blind, strict=True)])[1]

    def _trained(self, name: str) -> TrainRecord | None:
        return read_if_there(self._runs / name / "train.json", TrainRecord)


def of_seeds(base: Sequence[Planned], runs: Sequence[Planned]) -> list[Planned]:
    """Return the runs of `base` with a seed of `runs`, or all: while seeds are missing, like is held against like."""
    seeds = {run.seed for run in runs}
    return [run for run in base if run.seed in seeds] or list(base)


def _named(runs: Sequence[Planned], label: str) -> _Model:
    return tuple(run.name for run in runs), label


def _score(
    kind: Kind, runs: Sequence[Evaluation], bases: Sequence[Evaluation], floor: Sequence[Prediction] = ()
) -> SweptScore | None:
    """Return the mean score of a kind and what it keeps of `bases`, above their `floor` too where there is one.

    None where there are no such tasks.
    """
    scores = [100 * score for record, _ in runs if (score := _of(record, kind)) is not None]
    if not scores:
        return None
    found = SweptScore(
        scores=tuple(scores),
        mean=statistics.fmean(scores),
        spread=statistics.stdev(scores) if len(scores) > 1 else None,
    )
    if not bases:
        return found
    try:
        rows = compare_predictions(seed_average(bases), seed_average(runs), 0, 0, floor)
    except ArtifactError:
        # They were asked other items, and can't be held against each other.
        return found
    row = next((row for row in rows if (row.pack, row.task) == (MACRO, kind)), None)
    if row is None:
        return found
    kept = {"kept": row.retention, "low": row.retention_low, "high": row.retention_high, "n": row.n}
    if row.floor is not None:
        names = "above_floor", "above_floor_low", "above_floor_high", "no_above_floor"
        kept |= {"floor": 100 * row.floor, **row.model_dump(include={*names})}
    return found.model_copy(update=kept)


def _common(names: Sequence[str]) -> str:
    """Return the name that all have, or none."""
    return names[0] if len(set(names)) == 1 else ""


def _of_itself(score: SweptScore | None) -> SweptScore | None:
    """Return a score without intervals of what it keeps of itself, which is all."""
    bounds = "low", "high", "above_floor_low", "above_floor_high"
    return score and score.model_copy(update=dict.fromkeys(bounds))


def _nats(records: Sequence[EvalRecord]) -> float | None:
    """Return the mean nats a token of plain text; None where none was asked."""
    found = [task.score for record in records for task in record.tasks if task.metric == PERPLEXITY]
    return statistics.fmean(found) if found else None


def _of(record: EvalRecord, kind: Kind) -> float | None:
    return record.visual if kind == "visual" else record.text

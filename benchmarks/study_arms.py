"""A sweep's folder as the arms of the region study: what each was tried at, which rate was chosen, what it answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from striate.artifacts import Region, SweepRecord, TrainRecord, read_document, read_if_there
from striate.config import load_config
from striate.config.sweep_settings import SEED, ChooseSection
from striate.errors import ArtifactError
from striate.pipeline.model_evaluation import has_floor, read_floors, read_results
from striate.pipeline.sweeps.arm_flow import CONFIGS, RUNS
from striate.pipeline.sweeps.choosing import at_an_end, classes_of, ranked
from striate.pipeline.sweeps.plan import Planned
from striate.pipeline.sweeps.sweep import RECORD_FILE
from striate.tasks.scoring.seed_average import Evaluation

ALL, UNIFORM = "all", "uniform:25%"
REGION, RATE = "select.region", "train.lr"
_LABEL = "tuned"


@dataclass(frozen=True)
class Arm:
    """One region, or rival, of a study.

    Attributes:
        name: its region, and what else it changes.
        asked: the rates that it was to be tried at, with one seed.
        tried: of these runs the ones that are done, the best on held-out samples first.
        chosen: the best one and those of its further seeds that are done.
        edge: in words, where the best rate is the lowest or the highest of those asked for.
        waiting: how many rates may still turn out to be better.
    """

    name: str
    asked: tuple[Planned, ...]
    tried: tuple[Planned, ...]
    chosen: tuple[Planned, ...]
    edge: str = ""
    waiting: int = 0

    @property
    def best(self) -> Planned:
        """The run at the rate that was chosen."""
        return self.tried[0]


class Study:
    """What a sweep's folder has of the study: `sweep.json`, and of each run the files that tell its scores."""

    def __init__(self, folder: Path) -> None:
        """Read which runs there are.

        Raises:
            ArtifactError: the folder has no `sweep.json`.
        """
        self.folder = folder
        self.record = read_document(folder / RECORD_FILE, SweepRecord)
        self.answers, self.trained = cache(self._answers), cache(self._trained)
        whole = [run for run in self.record.runs if run.rung == 1]
        self._state = {run.name: run.state for run in whole}
        configs = {run.name: load_config(file) for run in whole if (file := self._config(run.name)).exists()}
        # Runs that have not begun have no config yet: of theirs nothing is asked that is not among the settings.
        self.runs = [
            Planned(run.name, run.settings, configs.get(run.name) or next(iter(configs.values())))
            for run in whole
            if configs
        ]

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """Every arm of which a run is done, by name, in the order of the sweep."""
        names = dict.fromkeys(arm_name(run.settings) for run in self.runs)
        found = [self._arm(name, [run for run in self.runs if arm_name(run.settings) == name]) for name in names]
        return {arm.name: arm for arm in found if arm}

    def is_done(self, run: Planned) -> bool:
        """Return whether the files of a run that tell its scores are here."""
        own = self.folder / RUNS / run.name
        wanted = "train.json", f"eval/{_LABEL}.json", f"eval/{_LABEL}.predictions.jsonl"
        return all((own / name).exists() for name in wanted)

    def done_at(self, arm: Arm, rate: str) -> list[Planned]:
        """Return the runs of an arm at a rate that are done, whatever their seed."""
        return [
            run
            for run in self.runs
            if arm_name(run.settings) == arm.name and rate_of(run) == rate and self.is_done(run)
        ]

    def region(self, run: Planned) -> Region:
        """Return the layers that a run trained."""
        return (
            read_if_there(self.folder / RUNS / run.name / "region.json", Region)
            or self.trained(run.name).trainable.region
        )

    def floors(self, runs: Sequence[Planned]) -> list[Evaluation]:
        """Return what those of `runs` that were asked with grey pictures answered then."""
        places = [(run, self.folder / RUNS / run.name) for run in runs]
        asked = [(run, place) for run, place in places if has_floor(place, _LABEL)]
        return [(self.answers(run.name)[0], list(read_floors(place, [_LABEL])[_LABEL])) for run, place in asked]

    def measured(self, run: Planned) -> float | None:
        """Return what a run measured on held-out samples by the metric that chooses."""
        validation = self.trained(run.name).validation
        return validation.last.get(self.record.chosen_by) if validation else None

    def left_out(self) -> list[str]:
        """Return a line for each run that no figure is of, with the error of those that failed."""
        errors = {run.name: run.error for run in self.record.runs}
        found = []
        for run in self.runs:
            state = self._state[run.name]
            if not self.is_done(run):
                said = "done, and not all of its files are here" if state == "done" else state
                found.append(": ".join(filter(None, (run.name, said, errors[run.name]))))
            elif not math.isfinite(self.measured(run) or 0.0):
                found.append(f"{run.name}: diverged")
        return found

    def _arm(self, name: str, runs: list[Planned]) -> Arm | None:
        # Runs of one seed that differ in the rate alone; those of further seeds have the chosen rate alone.
        asked = max(classes_of(runs, [RATE]), key=len)
        choose = ChooseSection(over=(RATE,), by=self.record.chosen_by or "exact_match")  # type: ignore[arg-type]
        order = ranked([run for run in asked if self.is_done(run)], choose, self.measured)
        if not order:
            return None
        chosen = [run for run in runs if run.group == order[0].group and self.is_done(run)]
        return Arm(
            name,
            tuple(asked),
            tuple(order),
            tuple(sorted(chosen, key=lambda run: run.seed)),
            edge=_edge(order[0], asked),
            waiting=sum(not self.is_done(run) and self._state[run.name] != "dropped" for run in asked),
        )

    def _config(self, name: str) -> Path:
        own = self.folder / RUNS / name / "config.yaml"
        return own if own.exists() else self.folder / CONFIGS / f"{name}.yaml"

    def _answers(self, name: str) -> Evaluation:
        return read_results(self.folder / RUNS / name, [_LABEL])[_LABEL]

    def _trained(self, name: str) -> TrainRecord:
        return read_document(self.folder / RUNS / name / "train.json", TrainRecord)


def arm_name(settings: dict[str, Any]) -> str:
    """Return what runs are called that differ in rate and seed alone: the region, and whatever else they change."""
    others = [f"{name}={value}" for name, value in settings.items() if name not in (REGION, RATE, SEED)]
    return ", ".join([str(settings.get(REGION, "the base's region")), *others])


def rate_of(run: Planned) -> str:
    """Return the learning rate of a run, as short as it can be written."""
    rate = run.settings.get(RATE, run.config.train.lr)
    try:
        return f"{float(rate):g}"
    except ValueError:
        return str(rate)


def arm_called(study: Study, name: str) -> Arm:
    """Return the arm that others are held against.

    Raises:
        ArtifactError: none of its runs is done.
    """
    if name in study.arms:
        return study.arms[name]
    raise ArtifactError(
        f"{study.folder} has no finished run of {name}, which others are held against",
        f"finished runs, with train.json and eval/, of: {', '.join(study.arms) or 'no arm'}",
        "go on with the sweep, or bring its files back",
    )


def _edge(best: Planned, asked: list[Planned]) -> str:
    lines = at_an_end([best], [RATE], asked)
    return ("lowest" if "lowest" in lines[0].rpartition(":")[2] else "highest") if lines else ""

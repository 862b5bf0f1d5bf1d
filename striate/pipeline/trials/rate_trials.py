"""Tries learning rates: short trainings of a run's region, each of a fresh model, measured on held-out samples."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.artifacts import RateSearch, RateTrial, Region, read_document, write_document
from striate.config import RunConfig, TrainSection
from striate.data.held_out import TrainingData, training_data
from striate.data.reading import drawn
from striate.errors import ArtifactError, ConfigError, DivergedError
from striate.pipeline.model_origins import origin_of
from striate.pipeline.trials.rate_choice import LEAST_STEPS, Pace, best_rate
from striate.progress import Progress, warn
from striate.storage.fingerprints import fingerprint_of

if TYPE_CHECKING:
    from striate.models.io.load import Loaded
    from striate.pipeline.resident_model import ResidentModel
    from striate.pipeline.stage_keys import StageKeys
    from striate.training.session import TrainingResult

FILE = "find_lr.json"
# Held out where the run holds nothing out; and the most samples that are measured.
SHARE, MOST_HELD_OUT = 0.05, 512
# The first of them compile and warm up.
PROBE_STEPS = 6
_NEVER = 1_000_000


@dataclass
class RateTrials:
    """The short trainings of one run.

    Attributes:
        config: of the run.
        file: where what is found is kept, trial by trial.
        train: the training data.
        validate: held-out samples, where `data.validate` names a file or folder.
        region: the layers that train.
        load: returns a fresh model, which is trained in place.
        base_path: where it is.
        follows: what the trials follow from, apart from what they are asked with.
        progress: where to say how far it is.
    """

    config: RunConfig
    file: Path
    train: Sequence[Path]
    validate: Path | None
    region: Region
    load: Callable[[], Loaded]
    base_path: str
    follows: str
    progress: Progress

    @classmethod
    def of(cls, keys: StageKeys, models: ResidentModel) -> RateTrials:
        """Return the trials of a run, by its keys and models."""
        from striate.pipeline.distributed_job import region_to_train

        run, inputs, path = keys.run, keys.inputs, models.path_of(origin_of(keys.run.config, "tuned"))
        follows = fingerprint_of({**keys.train(), "machine.dtype": run.config.machine.dtype})
        config, region = keys.tuning(), region_to_train(run.config, run.path)
        load, file = models.take_to_tune, run.path / FILE
        return cls(config, file, inputs.train, inputs.validate, region, load, path, follows, run.progress)

    def search(self, rates: Sequence[float], minutes: float, metric: str) -> RateSearch:
        """Return what each rate reaches; trials that are kept from an interrupted call are not done again.

        Raises:
            ConfigError: no layer trains at these rates, nothing held out is of the metric's kind, the lowest rate
                diverges at once, or the budget allows too few steps.
            StriateError: the model can't be trained.
        """
        began = time.perf_counter()
        self._check(metric)
        found = self._known(minutes, metric) or self._begun(rates, minutes, metric, began)
        for rate in rates:
            if all(trial.lr != rate for trial in found.trials):
                self.progress.say(f"find-lr: {rate:g}, {found.steps} steps")
                trials = sorted((*found.trials, self._trial(rate, found.steps, metric)), key=lambda trial: trial.lr)
                found = found.model_copy(update={"trials": tuple(trials)})
                write_document(self.file, found)
        best, open_end = best_rate(found.trials, metric)
        found = found.model_copy(update={"best": best, "open_end": open_end})
        write_document(self.file, found)
        return found

    @cached_property
    def _data(self) -> TrainingData:
        section, seed = self.config.data, self.config.seed
        if not section.validate:
            section = section.model_copy(update={"validate": f"{100 * SHARE:g}%"})
        data = training_data(section, self.train, self.validate, seed)
        return TrainingData(data.samples, list(drawn(data.held_out, MOST_HELD_OUT, seed)))

    def _check(self, metric: str) -> None:
        """Raise where trials could not differ, or not be told apart: before any of them."""
        if not self.region.layers:
            raise ConfigError(
                "region 'none' has no layer that trains at train.lr: all rates would be the same training",
                "a region of one layer or more",
                "choose one with --set select.region=uniform:25%; the projector's rate is train.projector_lr",
            )
        pictured = sum(bool(sample.images) for sample in self._data.held_out)
        texts = len(self._data.held_out) - pictured
        if {"visual": not pictured, "text": not texts}.get(metric.partition("_")[0]):
            lacking = "none has a picture" if not pictured else "all have pictures"
            raise ConfigError(
                f"--by {metric}, and of {pictured + texts} held-out samples {lacking}",
                "a metric of a kind that is held out, or of all",
                "use --by loss or exact_match, or hold out more with --set data.validate=10%",
            )

    def _known(self, minutes: float, metric: str) -> RateSearch | None:
        """Return what an earlier call left, of the same inputs and budget: all metrics were measured then."""
        try:
            found = read_document(self.file, RateSearch)
        except ArtifactError:
            return None
        if found.key != self.follows or found.budget_seconds != 60 * minutes:
            if found.trials:
                why = "other settings" if found.key != self.follows else f"--minutes {found.budget_seconds / 60:g}"
                warn(self.progress, f"find-lr: begins anew, {len(found.trials)} earlier trials were of {why}")
            return None
        return found.model_copy(update={"metric": metric})

    def _begun(self, rates: Sequence[float], minutes: float, metric: str, began: float) -> RateSearch:
        """Return a search without trials, after a probe of how long a step takes."""
        self.progress.say(f"find-lr: {PROBE_STEPS} steps to see how long one takes")
        whole = self._plan(self.config.train).steps
        begin = time.perf_counter()
        result = self._probe(min(rates), min(PROBE_STEPS, whole), metric)
        steps = [row["seconds"] for row in result.rows]
        pace = Pace(statistics.median(steps[len(steps) // 2 :]), time.perf_counter() - begin - sum(steps))
        left = 60 * minutes - (time.perf_counter() - began)
        pictured = sum(bool(sample.images) for sample in self._data.held_out)
        return RateSearch(
            key=self.follows,
            metric=metric,
            region=self.region,
            method=self.config.train.method,
            projector_lr=self.config.train.projector_lr,
            steps=pace.steps_within(left, len(rates), whole),
            whole_steps=whole,
            visual_samples=pictured,
            text_samples=len(self._data.held_out) - pictured,
            own=self.config.data.validate is not None,
            budget_seconds=60 * minutes,
        )

    def _probe(self, rate: float, steps: int, metric: str) -> TrainingResult:
        try:
            return self._trained(rate, steps, metric)
        except DivergedError as error:
            raise ConfigError(
                f"{rate:g}, the lowest rate: {error.given}",
                "a lowest rate at which training does not diverge in its first steps",
                "give lower --rates",
            ) from error

    def _trial(self, rate: float, steps: int, metric: str) -> RateTrial:
        begin = time.perf_counter()
        try:
            rows = self._trained(rate, steps, metric).rows
        except DivergedError as error:
            seconds = time.perf_counter() - begin
            return RateTrial(lr=rate, measured={}, last_loss=None, diverged=error.given, seconds=seconds)
        last = [row["loss"] for row in rows[-max(1, LEAST_STEPS // 2) :]]
        return RateTrial(
            lr=rate,
            measured={name: value for name, value in rows[-1]["validation"].items() if name != "seconds"},
            last_loss=statistics.fmean(last),
            diverged="",
            seconds=time.perf_counter() - begin,
        )

    def _trained(self, rate: float, steps: int, metric: str) -> TrainingResult:
        """Return how a training at `rate` went; nothing of it is kept."""
        from striate.data.collate import Collator
        from striate.data.pictures import PictureLimits
        from striate.training.checkpointing.checkpoints import CheckpointStore
        from striate.training.checkpointing.resume_identity import identity
        from striate.training.job import TrainingJob
        from striate.training.session import train_in_place

        config, machine, loaded = self._section(rate, steps, metric), self.config.machine, self.load()
        skips = self.config.data.broken == "skip"
        job = TrainingJob(
            self.region,
            self._data.samples,
            Collator(loaded.processor, config.max_length, True, PictureLimits.of(machine), skips),
            config,
            machine,
            self.config.seed,
            self.base_path,
            self._plan(config),
            self._data.held_out,
        )
        facts = identity(self.region, config, job.samples, job.seed, self.base_path, "", held_out=job.held_out)
        model: Any = loaded.model
        with tempfile.TemporaryDirectory() as folder:
            store = CheckpointStore(Path(folder) / "work", facts, saves=False)
            log = Path(folder) / "log.jsonl"
            return train_in_place(model, loaded.processor, job, self.progress, store, log, None)[1]

    def _section(self, rate: float, steps: int, metric: str) -> TrainSection:
        changed = {
            "lr": rate,
            "max_steps": steps,
            "validate_every": _NEVER,
            "keep": "last",
            "early_stopping_patience": None,
            "metric_for_best_model": metric,
        }
        return self.config.train.model_copy(update=changed)

    def _plan(self, config: TrainSection) -> Any:
        from striate.training.schedule import Plan

        return Plan.of(len(self._data.samples), config, self.config.machine)

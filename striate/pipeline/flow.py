"""The whole flow: analyze -> select -> train -> prune (or prune -> train) -> evaluate -> report, in one run folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from striate.artifacts import (
    Curve,
    HealRecord,
    PruneRecord,
    RateSearch,
    Region,
    Retention,
    Scores,
    SuiteRecord,
    TrainRecord,
    read_document,
    write_document,
)
from striate.config import AUTO, RunConfig, anchored
from striate.pipeline.all_done import all_done
from striate.pipeline.checking.run_ahead import check_run_ahead
from striate.pipeline.earlier_keys import adopt_earlier_stages
from striate.pipeline.harness_runs import checked_suites, run_suite_stages
from striate.pipeline.ineffective_settings import ineffective_settings
from striate.pipeline.model_evaluation import (
    Results,
    evaluate_model,
    read_floors,
    read_results,
    write_gate,
    write_retention,
)
from striate.pipeline.model_origins import FOLDERS
from striate.pipeline.preflight import check_base, check_loggers, check_region, labels_of, num_layers_of
from striate.pipeline.pruning.healing_run import HealingRun
from striate.pipeline.pruning.pruned_places import settle_pruned
from striate.pipeline.pruning_run import PruningRun
from striate.pipeline.references import floors_of, references_of
from striate.pipeline.resident_model import BASE_LABEL, ResidentModel
from striate.pipeline.restore_training import restore_training
from striate.pipeline.run_card import write_run_card
from striate.pipeline.run_inputs import locate_inputs, usable_calibration
from striate.pipeline.run_packs import RunPacks
from striate.pipeline.stage_keys import StageKeys
from striate.progress import Progress, Silent, warn
from striate.runs.folder import CONFIG_FILE, open_run
from striate.runs.former_defaults import as_it_began
from striate.storage.launcher import launch
from striate.wording import named_layers

if TYPE_CHECKING:
    import torch

    from striate.harness.suites import Suite
    from striate.pipeline.distributed_job import TrainingRequest


class Flow:
    """One run: each verb is a method that does its stage, or says that it is up to date, and returns its artifact."""

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        *,
        progress: Progress | None = None,
        overwrite: bool = False,
        command: str = "",
        curve: bool = False,
        kept: RunConfig | None = None,
    ) -> None:
        """Find the model and data of `config`, fetching what is built in; then open the run folder `out`.

        Settings that have no effect are said; those that only a curve reads have one where `curve` is asked for.
        `kept` is what the folder keeps of `config`, where some of it counts for this call alone.

        Raises:
            StriateError: the model's path, a data path, the gate or the folder can't be used.
        """
        self.out = out
        self.progress = progress or Silent()
        self.config = as_it_began(anchored(config), out / CONFIG_FILE, self.progress.say)
        if config.machine.device not in ("auto", "cpu"):
            # What this machine may not have is refused before anything is read; the others it always has.
            _ = self.device
        self.inputs = locate_inputs(self.config, self.progress)
        self.run = open_run(
            out,
            self.config,
            self.progress,
            command=command,
            device=lambda: str(self.device),
            overwrite=overwrite,
            kept=as_it_began(anchored(kept), out / CONFIG_FILE) if kept else None,
        )
        self._packs = RunPacks(self.run, self.inputs)
        self.keys = StageKeys(self.run, self.inputs, self._packs.read, self._packs.read_until)
        self._models = ResidentModel(self.run, self.inputs.model)
        self._healing = HealingRun(self.keys)
        self._pruning = PruningRun(self.keys, self._models, self._packs.noted, self._healing)
        adopt_earlier_stages(self.keys)
        for line in ineffective_settings(self.config, curve=curve):
            warn(self.progress, line)

    @cached_property
    def device(self) -> torch.device:
        """The device of the run; looked for when a stage is out of date, as it takes the import of torch."""
        from striate.models.io.devices import resolve_device

        return resolve_device(self.config.machine.device)

    def everything(self) -> Path:
        """Run all stages in order; return the path of the report."""
        done = all_done(self.keys, scores=self.scores_wanted, blind=self.asked_blind)
        if not done:
            check_run_ahead(self.keys, self.device, self._num_layers)
        if self.scores_wanted:
            self.analyze()
        region = self.select()
        if not done:
            check_region(self.keys.tuning(whole=True), region)
        if self.config.prune.first:
            self.prune()
        self.train()
        if self.config.prune.remove and not self.config.prune.first:
            self.prune()
        if self.config.evaluate.packs:
            self.evaluate()
        self.suites()
        return self.report()

    @property
    def scores_wanted(self) -> bool:
        """Whether the whole flow scores layers; for the page alone, where no region or pruning follows from scores."""
        return True

    @property
    def asked_blind(self) -> list[str]:
        """Which models are asked without their pictures too, in the order of evaluation."""
        return floors_of(self.config)

    def analyze(self) -> Scores:
        """Score every decoder layer on the calibration set; write scores.json."""
        section = self.config.analyze
        with self.run.stage("analyze", self.keys.analyze(), ["scores.json"]) as stage:
            if stage.stale:
                from striate.data.pictures import PictureLimits
                from striate.data.reading import read_many
                from striate.stages.analyze import analyze

                samples = read_many(self.inputs.calibrating, section.samples, self.config.seed, self.inputs.options)
                base_model = self._models.load(BASE_LABEL)
                samples = usable_calibration("analyze", samples, base_model.processor, self.config, self.progress)
                scores = analyze(
                    base_model.model,
                    base_model.processor,
                    samples,
                    section.scorers,
                    by=section.by,
                    base=self.inputs.base,
                    pairs=section.pairs,
                    batch_size=self.config.machine.micro_batch,
                    max_length=self.config.train.max_length,
                    seed=self.config.seed,
                    limits=PictureLimits.of(self.config.machine),
                    progress=self.progress,
                )
                write_document(self.out / "scores.json", scores)
        return read_document(self.out / "scores.json", Scores)

    def select(self) -> Region:
        """Choose the region; write region.json."""
        from striate.stages.select import select

        spec = self.keys.region_spec
        with self.run.stage("select", self.keys.select(), ["region.json"]) as stage:
            if stage.stale:
                scores = read_document(self.out / "scores.json", Scores) if spec.needs_scores else None
                region = select(self._num_layers(), spec, scores)
                write_document(self.out / "region.json", region)
                self.progress.say(f"select: {named_layers(region.layers)} of {region.num_layers}")
        return read_document(self.out / "region.json", Region)

    def scores_if_any(self) -> Scores | None:
        """Return the scores of this run's settings, or None where `analyze` has not made them."""
        # What scores follow from includes all of the data: nothing of it is read where there are none.
        done = (self.out / "scores.json").is_file() and self.run.is_done("analyze", self.keys.analyze())
        return read_document(self.out / "scores.json", Scores) if done else None

    def train(self) -> TrainRecord:
        """Tune the region and the projector; write checkpoint/, train.json and train_log.jsonl."""
        outputs, restore = ["checkpoint", "train.json", "train_log.jsonl"], partial(restore_training, self.out)
        with self._session() as start:
            check_base(self.config, self.inputs.model)
            check_loggers(self.config)
            with self.run.stage("train", self.keys.train(), outputs, ["train_log.jsonl"], restore) as stage:
                if stage.stale:
                    from striate.pipeline.distributed_job import TrainingRequest

                    job = TrainingRequest.of(self.keys, self._models, stage.key)
                    if self.config.train.lr == AUTO:
                        self.progress.say(f"train: train.lr auto is {job.config.train.rate:g} for this region")
                    start(job)
                    record = job.run(self._models.take_to_tune(), self.progress)
                    write_document(self.out / "train.json", record)
                    self._write_card("tuned")
                elif stage.restored:
                    self.progress.say("train: finished before; its record and log are those that its checkpoint holds")
                    self._write_card("tuned")
        return read_document(self.out / "train.json", TrainRecord)

    def _session(self) -> AbstractContextManager[Callable[[TrainingRequest], None]]:
        """Return a context of what hands a training to other processes, where a launcher started some."""
        if launch().world_size == 1:
            return nullcontext(lambda job: None)
        from striate.pipeline.distributed_job import rank_zero_session

        return rank_zero_session(self.device)

    def find_lr(self, rates: Sequence[float], minutes: float, metric: str) -> RateSearch:
        """Try learning rates in short trainings on the region; write find_lr.json. No other artifact changes.

        Args:
            rates: to try; none: five around `train.lr`, a factor 2 apart.
            minutes: for all of them together.
            metric: of held-out samples, as `train.metric_for_best_model`.

        Raises:
            ConfigError: the minutes allow too few steps.
        """
        from striate.pipeline.trials.rate_choice import rates_around
        from striate.pipeline.trials.rate_trials import RateTrials

        trials = RateTrials.of(self.keys, self._models)
        return trials.search(rates or rates_around(trials.config.train.rate), minutes, metric)

    def prune(self) -> PruneRecord:
        """Remove layers outside the region; write pruned/ and prune.json, or unhealed/ where a healed one follows."""
        label = "unhealed" if self.config.heals else "pruned"
        settle_pruned(self.keys)
        with self.run.stage("prune", self.keys.prune(), [label, "prune.json"]) as stage:
            if stage.stale:
                record = self._pruning.prune(label, stage.key, lambda: self._results(["tuned"])["tuned"])
                self._write_card(label)
                by = f", ranked by {record.scorer}" if record.scorer and record.removed else ""
                self.progress.say(f"prune: removed {named_layers(record.removed)}{by}")
        if self.config.heals:
            self.heal()
        return read_document(self.out / "prune.json", PruneRecord)

    def heal(self) -> HealRecord:
        """Train the pruned model a little; write pruned/, heal.json and heal_log.jsonl."""
        from striate.pipeline.pruning.healing_run import LOG, OUTPUTS, WORK

        with self.run.stage("heal", self.keys.heal(), OUTPUTS, [LOG]) as stage:
            if stage.stale:
                self._healing.heal(self._models)
                self._write_card("pruned")
        shutil.rmtree(self.out / WORK, ignore_errors=True)
        return read_document(self.out / "heal.json", HealRecord)

    def curve(self, spec: str) -> Curve:
        """Try numbers of removed layers such as `0:50%`; write curve.json and curve.csv. No other artifact changes.

        Raises:
            ConfigError: a text that is no such numbers, more layers than lie outside the region, or no test packs.
        """
        from striate.pipeline.trials.curve_run import CURVE_FILE, TABLE_FILE, check_curve, references, write_curve
        from striate.pruning.curve_counts import curve_counts

        self.run.output("select", "region.json", self.keys.select())
        region = read_document(self.out / "region.json", Region)
        counts = curve_counts(spec, region.num_layers)
        check_curve(self.config, region, counts)
        trials = self._pruning.trials(counts[-1])
        with self.run.stage("curve", trials.follows(counts), [CURVE_FILE, TABLE_FILE]) as stage:
            if stage.stale:
                write_curve(trials, spec, counts, self._results(references(self.config)))
        return read_document(self.out / CURVE_FILE, Curve)

    def evaluate(self) -> Retention:
        """Ask every model the test packs; write eval/LABEL.json, its predictions, retention.json and gate.json."""
        section, seed, blind = self.config.evaluate, self.config.seed, self._floors
        results, references = self._results(self.labels, blind), references_of(self.config)
        floors = read_floors(self.out, blind)
        retention = write_retention(self.out, results, section, seed, references, floors)
        write_gate(self.out, results, section, seed, references, floors)
        for label in self.labels:
            self._write_card(label, figures=True)
        return retention

    def _results(self, labels: Sequence[str], blind: Sequence[str] = ()) -> Results:
        """Return records and answers of models, by label, after asking those that are not up to date.

        Those of `blind` are asked without their pictures too.
        """
        for label in labels:
            model, load = self._models.path_of(label), partial(self._models.load, label)
            key, floor = self.keys.evaluate(label), self.keys.floor(label)
            evaluate_model(self.run, label, model=model, key=key, packs=self._packs.noted, load=load)
            if label in blind:
                evaluate_model(self.run, label, model=model, key=floor, packs=self._packs.noted, load=load, blind=True)
            self._models.drop()
        return read_results(self.out, labels)

    @cached_property
    def _floors(self) -> list[str]:
        """Return which models are asked without their pictures; none where no item has one, which is said."""
        labels = self.asked_blind
        if labels and not any(item.images for pack in self._packs.read() for item in pack.items):
            warn(self.progress, "no effect: evaluate.floor (no test item has a picture)")
            return []
        return labels

    @property
    def labels(self) -> list[str]:
        """The names of the models that are evaluated: the run's own, then others."""
        return labels_of(self.config)

    def check_suites(self) -> list[Suite]:
        """Return the harness suites of the config; raise where one is not done and its harness is not installed."""
        return checked_suites(self.keys)

    def suites(self) -> list[SuiteRecord]:
        """Run the harness suites of the config on every model; write eval/suites/."""
        return run_suite_stages(self.keys, self._models)

    def report(self) -> Path:
        """Write report.html from whatever artifacts there are; return its path."""
        from striate.stages.report import report

        return report(self.out)

    def refresh_report(self) -> None:
        """Write report.html again where there is one, which would tell of a run that is no longer so."""
        if (self.out / "report.html").is_file():
            self.report()
            self.progress.say("report.html shows this now")

    def _write_card(self, label: str, figures: bool = False) -> None:
        """Write README.md of the checkpoint called `label`; the model that the run began with keeps its own."""
        if label in FOLDERS:
            write_run_card(self.out, label, self.config, self.inputs.model, figures)

    def _num_layers(self) -> int:
        """Return the number of decoder layers: from the scores if there are some, else from the model's config."""
        scores = self.scores_if_any()
        return scores.num_layers if scores else num_layers_of(self.inputs.model)

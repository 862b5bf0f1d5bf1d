"""The whole flow on one screen: analyze -> select -> train -> prune -> evaluate -> report, in one run folder."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from striate.artifacts import (
    PruneRecord,
    Region,
    Retention,
    Scores,
    SuiteRecord,
    TrainRecord,
    read_document,
    write_document,
)
from striate.config import RunConfig, anchored
from striate.demo.places import locate_data, locate_model
from striate.pipeline.preflight import check_base, check_region, find_base, find_sources, labels_of
from striate.pipeline.resident_model import BASE_LABEL, QUANTISED, HeldModel
from striate.pipeline.stage_keys import StageInputs
from striate.progress import Progress, Silent
from striate.runs.folder import RunFolder, open_run

if TYPE_CHECKING:
    from striate.tasks.packs.items import Pack


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
    ) -> None:
        """Open the run folder `out` for `config`; find model and data, fetching what is built in.

        Raises:
            StriateError: the folder, the model's path or a data path can't be used.
        """
        from striate.models.io.load import resolve_device

        config = anchored(config)
        self.config = config
        self.out = out
        self.progress = progress or Silent()
        self.device = resolve_device(config.machine.device)
        # A gate is held against the test items before anything is written.
        gated = find_sources(config, self.progress) if config.evaluate.gate else None
        self.run: RunFolder = open_run(
            out, config, self.progress, command=command, device=str(self.device), overwrite=overwrite
        )
        self.model_path = locate_model(config.model.path, self.progress)
        self.train_paths = [locate_data(name, self.progress) for name in config.data.train]
        self.calibration_paths = [locate_data(name, self.progress) for name in config.data.calibration]
        self._models = HeldModel(config, self._path_of)
        self.base_path = find_base(config, self.progress)
        self.sources = find_sources(config, self.progress) if gated is None else gated
        pack_paths = [source.folder for source in self.sources]
        self.inputs = StageInputs(
            self.run, self.model_path, self.train_paths, self.calibration_paths, pack_paths, self.base_path
        )

    def everything(self) -> Path:
        """Run all stages in order; return the path of the report."""
        if self.config.train.method == "qlora":
            from striate.models.io.quantized import check_quantisation

            check_quantisation(self.device)
        self._look_ahead()
        self.analyze()
        check_region(self.config, self.select())
        self.train()
        if self.config.prune.remove:
            self.prune()
        if self.config.evaluate.packs:
            self.evaluate()
        self.suites()
        return self.report()

    def analyze(self) -> Scores:
        """Score every decoder layer on the calibration set; write scores.json."""
        from striate.data.reading import read_many
        from striate.models.io.peak_memory import peak_memory_gib
        from striate.stages.analyze import analyze

        section = self.config.analyze

        def work() -> float:
            samples = read_many(self.calibration_paths or self.train_paths, section.samples, self.config.seed)
            loaded = self._models.load(BASE_LABEL)
            scores = analyze(
                loaded.model,
                loaded.processor,
                samples,
                section.scorers,
                by=section.by,
                base=self.base_path,
                pairs=section.pairs,
                batch_size=self.config.machine.micro_batch,
                max_length=self.config.train.max_length,
                seed=self.config.seed,
                progress=self.progress,
            )
            write_document(self.out / "scores.json", scores)
            return peak_memory_gib(self.device)

        self.run.stage("analyze", self.inputs.analyze(), ["scores.json"], work)
        return read_document(self.out / "scores.json", Scores)

    def select(self) -> Region:
        """Choose the region; write region.json."""
        from striate.stages.select import select

        spec = self.config.select.region
        inputs = self.inputs.select()

        def work() -> float:
            scores = read_document(self.out / "scores.json", Scores) if inputs["scores"] else None
            region = select(self._num_layers(), spec, scores)
            write_document(self.out / "region.json", region)
            self.progress.say(f"select: layers {', '.join(map(str, region.layers)) or 'none'} of {region.num_layers}")
            return 0.0

        self.run.stage("select", inputs, ["region.json"], work)
        return read_document(self.out / "region.json", Region)

    def scores_if_any(self) -> Scores | None:
        """Return the scores of this run's settings, or None where `analyze` has not made them."""
        done = self.run.is_done("analyze", self.inputs.analyze())
        return read_document(self.out / "scores.json", Scores) if done else None

    def train(self) -> TrainRecord:
        """Tune the region and the projector; write checkpoint/, train.json and train_log.jsonl."""
        from striate.pipeline.distributed_job import WORK_FOLDER, Job, leading

        job = Job(self.config, self.out, self.model_path, tuple(self.train_paths))
        outputs = ["checkpoint", "train.json", "train_log.jsonl"]
        with leading(self.device) as tell:
            check_base(self.config, self.model_path)

            def work() -> float:
                tell(job)
                loaded = self._models.load(QUANTISED if self.config.train.method == "qlora" else BASE_LABEL)
                self._models.drop()
                record = job.run(loaded, self.progress)
                write_document(self.out / "train.json", record)
                self._write_card("tuned")
                return record.peak_memory_gib

            self.run.stage("train", self.inputs.train(), outputs, work, unfinished=[WORK_FOLDER, "train_log.jsonl"])
        return read_document(self.out / "train.json", TrainRecord)

    def prune(self) -> PruneRecord:
        """Remove layers outside the region; write pruned/ and prune.json."""
        from striate.data.collate import Collator
        from striate.data.reading import read_many
        from striate.models.io.peak_memory import peak_memory_gib
        from striate.stages.prune import prune

        section = self.config.prune

        def work() -> float:
            loaded = self._models.load("tuned")
            self._models.drop()
            samples = read_many(self.train_paths, 2, self.config.seed)
            prompts = Collator(loaded.processor, self.config.train.max_length, train=False).encode_prompts(samples)
            _, record = prune(
                loaded.model,
                read_document(self.out / "region.json", Region),
                section.remove,
                read_document(self.out / "scores.json", Scores) if section.remove else None,
                section.scorer,
                processor=loaded.processor,
                out=self.out / "pruned",
                test_inputs=prompts,
            )
            write_document(self.out / "prune.json", record)
            self._write_card("pruned")
            layers = ", ".join(map(str, record.removed)) or "none"
            self.progress.say(f"prune: removed layers {layers}{record.scorer and f', ranked by {record.scorer}'}")
            return peak_memory_gib(self.device)

        self.run.stage("prune", self.inputs.prune(), ["pruned", "prune.json"], work)
        return read_document(self.out / "prune.json", PruneRecord)

    def evaluate(self) -> Retention:
        """Ask every model the test packs; write eval/LABEL.json, its predictions, retention.json and gate.json."""
        from striate.pipeline.model_evaluation import evaluate_model, read_results, write_gate, write_retention

        section = self.config.evaluate
        for label in self.labels:
            evaluate_model(
                self.run,
                label,
                model=self._path_of(label),
                inputs=self.inputs.evaluate(label),
                packs=lambda: self._packs,
                load=partial(self._models.load, label),
                progress=self.progress,
            )
            self._models.drop()
        results = read_results(self.out, self.labels)
        retention = write_retention(self.out, results, section, self.config.seed)
        write_gate(self.out, results, section, self.config.seed)
        for label in self.labels:
            self._write_card(label, figures=True)
        return retention

    @property
    def labels(self) -> list[str]:
        """The names of the models that are evaluated: the run's own, then others."""
        return labels_of(self.config)

    def suites(self) -> list[SuiteRecord]:
        """Run the harness suites of the config on every model; write eval/suites/."""
        from striate.harness.suites import parse_suite, require
        from striate.pipeline.harness_runs import run_suite_stage

        section = self.config.evaluate
        wanted = [parse_suite(text) for text in section.suites]
        for suite in wanted:
            require(suite)
        return [
            run_suite_stage(
                self.run,
                suite,
                label,
                model=self._path_of(label),
                inputs=self.inputs.suite(label, suite),
                load=partial(self._models.load, label),
                progress=self.progress,
            )
            for label in self.labels
            for suite in wanted
        ]

    def report(self) -> Path:
        """Write report.html from whatever artifacts there are; return its path."""
        from striate.stages.report import report

        return report(self.out)

    def _look_ahead(self) -> None:
        """Raise now for a base model, SPEC or test pack that would otherwise be refused only after hours."""
        from striate.selectors.spec.extra_visual_layers import parse_image_also
        from striate.selectors.spec.grammar import parse_spec
        from striate.selectors.spec.required_scores import check_needs
        from striate.stages.select import select

        check_base(self.config, self.model_path)
        spec = parse_spec(self.config.select.region)
        check_needs(spec, self.config.analyze)
        parse_image_also(self.config.train.image_also)
        if not spec.needs_scores:
            check_region(self.config, select(self._num_layers(), spec.text))
        # Read once, here or by the first evaluation.
        self._packs  # noqa: B018

    @cached_property
    def _packs(self) -> list[Pack]:
        """The test packs, read and checked once."""
        from striate.tasks.packs.sources import read_source

        pictures = (self.out / "eval" / "pictures").resolve()
        return [read_source(source, self.config.evaluate.limit, pictures) for source in self.sources]

    def _write_card(self, label: str, figures: bool = False) -> None:
        """Write README.md of the checkpoint called `label`; the model that the run began with keeps its own."""
        from striate.pipeline.run_card import write_run_card

        if label in ("tuned", "pruned"):
            write_run_card(self.out, label, self.config, self.model_path, figures)

    def _path_of(self, label: str) -> str:
        """Return where the model called `label` is."""
        places = {"tuned": self.out / "checkpoint", "pruned": self.out / "pruned", **self.config.evaluate.others}
        return str(places.get(label, self.model_path))

    def _num_layers(self) -> int:
        """Return the number of decoder layers: from the scores if there are some, else from the model's config."""
        scores = self.scores_if_any()
        if scores:
            return scores.num_layers
        from striate.models.io.adapters import base_of, is_adapter
        from striate.models.structure.meta_model import blueprint

        folder = Path(self.model_path)
        return blueprint(base_of(folder) if is_adapter(folder) else self.model_path).anatomy.num_layers

"""Read all artifacts of a run folder, once for the whole page."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from striate.artifacts import (
    Bench,
    Curve,
    DataNotes,
    EvalRecord,
    GateResult,
    LayerScores,
    Prediction,
    PruneRecord,
    RateSearch,
    Region,
    Retention,
    Scores,
    SuiteRecord,
    TrainRecord,
    read_document,
    read_if_there,
    read_lines,
)
from striate.config import OWN_MODELS, RunConfig, load_config
from striate.errors import ArtifactError
from striate.runs.run_record import RunRecord
from striate.storage.read_files import Form, read_text

LOG_FILE = Form(ArtifactError, "one JSON object a line", "run `striate train` again")


class LogStep(BaseModel):
    """One optimizer step of `train_log.jsonl`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    step: int
    loss: float
    lr: float | None = None
    projector_lr: float | None = None
    grad_norm: float | None = None
    seconds: float | None = None
    validation: dict[str, float] | None = None


@dataclass(frozen=True)
class RunArtifacts:
    """Every artifact of one run folder; what is missing is None or empty."""

    run: Path
    config: RunConfig | None = None
    record: RunRecord | None = None
    scores: Scores | None = None
    region: Region | None = None
    train: TrainRecord | None = None
    log: tuple[LogStep, ...] = ()
    prune: PruneRecord | None = None
    evals: dict[str, EvalRecord] = field(default_factory=dict)
    predictions: dict[str, list[Prediction]] = field(default_factory=dict)
    retention: Retention | None = None
    gate: GateResult | None = None
    notes: DataNotes | None = None
    suites: tuple[SuiteRecord, ...] = ()
    curve: Curve | None = None
    rates: RateSearch | None = None
    speed: Bench | None = None

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model before pruning, or 0 where no artifact tells."""
        if self.region:
            return self.region.num_layers
        if self.scores:
            return self.scores.num_layers
        whole = self.evals.get("start") or self.evals.get("tuned")
        return whole.num_layers if whole else 0

    @property
    def removed(self) -> tuple[int, ...]:
        """Layers that pruning took away."""
        return self.prune.removed if self.prune else ()

    @property
    def labels(self) -> list[str]:
        """The models that were evaluated: the run's own in the order of their making, then others."""
        return list(self.evals)


def gather(run: Path) -> RunArtifacts:
    """Return the artifacts in the run folder `run`.

    Raises:
        ArtifactError: no such folder, nothing of striate in it, or a damaged artifact.
    """
    if not run.is_dir():
        raise ArtifactError(f"no run folder at {run}", "a folder that `striate run` wrote", "check the path")
    artifacts = _read(run)
    if artifacts == RunArtifacts(run):
        raise ArtifactError(
            f"{run} holds no artifact of striate",
            "config.yaml, run.json, scores.json, region.json, train.json, prune.json or eval/*.json",
            "run a stage into this folder first, or check the path",
        )
    _check_depth(artifacts)
    return artifacts


def _check_depth(artifacts: RunArtifacts) -> None:
    layers = artifacts.num_layers
    if not artifacts.scores:
        return
    entries = [*artifacts.scores.scorers, *(entry for task in artifacts.scores.tasks.values() for entry in task)]
    rows = [row for entry in entries for row in _rows(entry)]
    depths = {artifacts.scores.num_layers, *map(len, rows)} - {layers}
    if depths:
        raise ArtifactError(
            f"{artifacts.run}: scores.json has scores of {min(depths)} layers, the region is of {layers} layers",
            "artifacts of one model",
            "run `striate analyze` and `striate select` again on the same model",
        )


def _rows(entry: LayerScores) -> list[tuple[float, ...]]:
    """Return everything in `entry` that has one value a layer."""
    parts = [row for rows in (entry.parts, entry.part_low, entry.part_high) for row in rows.values()]
    return [row for row in (entry.values, entry.low, entry.high, *parts) if row]


def _read(run: Path) -> RunArtifacts:
    evals = run / "eval"
    config = load_config(run / "config.yaml") if (run / "config.yaml").exists() else None
    retention = read_if_there(evals / "retention.json", Retention)
    train = read_if_there(run / "train.json", TrainRecord)
    prune = read_if_there(run / "prune.json", PruneRecord)
    region = read_if_there(run / "region.json", Region)
    labels = _model_labels(config, retention)
    records = {label: read_if_there(evals / f"{label}.json", EvalRecord) for label in labels}
    answers = {label: evals / f"{label}.predictions.jsonl" for label in labels}
    return RunArtifacts(
        run=run,
        config=config,
        record=read_if_there(run / "run.json", RunRecord),
        scores=read_if_there(run / "scores.json", Scores),
        region=region or (train.trainable.region if train else None) or (prune.region if prune else None),
        train=train,
        log=read_log(run / "train_log.jsonl"),
        prune=prune,
        evals={label: record for label, record in records.items() if record},
        predictions={label: read_lines(path, Prediction) for label, path in answers.items() if path.exists()},
        retention=retention,
        gate=read_if_there(evals / "gate.json", GateResult),
        notes=read_if_there(evals / "data_notes.json", DataNotes),
        curve=read_if_there(run / "curve.json", Curve),
        rates=read_if_there(run / "find_lr.json", RateSearch),
        speed=read_if_there(run / "speed.json", Bench),
        suites=tuple(read_document(path, SuiteRecord) for path in sorted((evals / "suites").glob("*.json"))),
    )


def _model_labels(config: RunConfig | None, retention: Retention | None) -> list[str]:
    """Return the models that may have been evaluated: the run's own, and others of the config or of the comparison.

    A run that is asked again with other settings still holds what was compared before.
    """
    named = list(config.evaluate.others) if config else []
    compared = [label for row in retention.rows for label in (row.baseline, row.label)] if retention else []
    return list(dict.fromkeys((*OWN_MODELS, *named, *compared)))


def read_log(path: Path) -> tuple[LogStep, ...]:
    """Return the steps of a training log; a last line that was cut short is left out.

    Raises:
        ArtifactError: a line before the last is not a step.
    """
    if not path.exists():
        return ()
    lines = read_text(path, LOG_FILE).splitlines()
    steps: list[LogStep] = []
    for place, line in enumerate(lines, start=1):
        try:
            steps.append(LogStep.model_validate(json.loads(line)))
        except (ValueError, RecursionError) as error:
            if place == len(lines):
                break
            raise ArtifactError(
                f"{path} line {place} is not a training step", "one JSON object a line", "run `striate train` again"
            ) from error
    return tuple(steps)

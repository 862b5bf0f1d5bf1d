"""Evaluate each model of a run as a stage, then compare all with the baseline and hold them against the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from striate.artifacts import (
    DataNotes,
    Difference,
    EvalRecord,
    GateResult,
    Prediction,
    Retention,
    read_document,
    read_lines,
    write_document,
    write_lines,
)
from striate.config import EvaluateSection
from striate.errors import StriateError, first_line
from striate.progress import warn
from striate.runs.folder import RunFolder
from striate.storage.atomic import cannot_write
from striate.storage.fingerprints import weight_bytes
from striate.tasks.scoring.compare import compare_predictions
from striate.tasks.scoring.gate import hold_against
from striate.tasks.scoring.intervals import METHOD

if TYPE_CHECKING:
    from striate.data.samples import Sample
    from striate.models.io.load import Loaded
    from striate.tasks.packs.items import Pack

Results = dict[str, tuple[EvalRecord, list[Prediction]]]
Floors = Mapping[str, Sequence[Prediction]]
FOLDER, RETENTION_FILE, GATE_FILE, NOTES_FILE = "eval", "retention.json", "gate.json", "data_notes.json"


def _evaluation_files(label: str, blind: bool = False) -> list[str]:
    folder = f"{FOLDER}/floor" if blind else FOLDER
    return [f"{folder}/{label}.json", f"{folder}/{label}.predictions.jsonl"]


def evaluate_model(
    run: RunFolder,
    label: str,
    *,
    model: str,
    key: dict[str, Any],
    packs: Callable[[], list[Pack]],
    load: Callable[[], Loaded],
    blind: bool = False,
) -> None:
    """Ask the model called `label` all packs, unless that is up to date; write its record and predictions.

    Replies are kept beside them meanwhile, so that a killed evaluation resumes without asking twice.

    Args:
        run: the run folder.
        label: the model's name in the run.
        model: where the model comes from.
        key: what its answers follow from.
        packs: reads the packs, called only when they are needed.
        load: loads the model, called only when it is needed.
        blind: whether it is asked for its floor: the items with a picture, without it.

    Raises:
        StriateError: see `striate.stages.evaluate.evaluate`.
    """
    record_file, answers_file = files = _evaluation_files(label, blind)
    journal = record_file.removesuffix(".json") + ".replies.jsonl"
    with run.stage(f"{'floor' if blind else 'evaluate'}:{label}", key, files, unfinished=[journal]) as stage:
        if not stage.stale:
            return
        # With it comes transformers, which an evaluation that is up to date need not wait for.
        from striate.stages.evaluate import evaluate

        loaded = load()
        record, predictions = evaluate(
            loaded.model,
            loaded.processor,
            packs(),
            label=label,
            model_name=model,
            config=run.config.evaluate,
            machine=run.config.machine,
            seed=run.config.seed,
            size_bytes=weight_bytes(Path(model)),
            progress=run.progress,
            journal=run.path / journal,
            journal_key=stage.key,
            blind=blind,
        )
        (run.path / answers_file).parent.mkdir(parents=True, exist_ok=True)
        write_lines(run.path / answers_file, predictions)
        write_document(run.path / record_file, record)
        remove(run.path / journal)


def remove(path: Path) -> None:
    """Delete a file if it is there.

    Raises:
        ArtifactError: it can't be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def read_results(run: Path, labels: Sequence[str]) -> Results:
    """Return each model's record and predictions in the run folder `run`, by label.

    Raises:
        ArtifactError: one of them was not evaluated.
    """
    places = {label: _evaluation_files(label) for label in labels}
    return {
        label: (read_document(run / record, EvalRecord), read_lines(run / answers, Prediction))
        for label, (record, answers) in places.items()
    }


def has_floor(run: Path, label: str) -> bool:
    """Return whether a model of the run folder `run` was asked without pictures."""
    return all((run / file).exists() for file in _evaluation_files(label, blind=True))


def read_floors(run: Path, labels: Sequence[str]) -> Floors:
    """Return what models answered without pictures, by label.

    Raises:
        ArtifactError: one of them was not asked.
    """
    return {label: read_lines(run / _evaluation_files(label, blind=True)[1], Prediction) for label in labels}


def write_data_notes(run: RunFolder, packs: Sequence[Pack], trained: Callable[[], Sequence[Sample]]) -> None:
    """Say what is odd about test packs and training data, and write eval/data_notes.json.

    Without the training data, which an evaluation may outlive, the notes say so.
    """
    from striate.tasks.packs.findings import findings

    try:
        lines = findings(trained(), packs)
    except StriateError as error:
        lines = [*findings([], packs), f"training data: not compared with the packs: {first_line(error)}"]
    write_document(run.path / FOLDER / NOTES_FILE, DataNotes(lines=tuple(lines)))
    for line in lines:
        warn(run.progress, f"note: {line}")


def write_retention(
    run: Path,
    results: Results,
    section: EvaluateSection,
    seed: int,
    references: Mapping[str, str],
    floors: Floors = MappingProxyType({}),
) -> Retention:
    """Return every model's comparison with the baseline, and with what it is held against; write eval/retention.json.

    Args:
        run: the run folder.
        results: each model's record and predictions, by label.
        section: settings of the evaluation.
        seed: of the draws behind perplexity's intervals.
        references: by label, the model that another is held against (`references_of`).
        floors: by label, what models that others are held against answered without pictures.

    Raises:
        ArtifactError: two models did not answer the same items.
    """
    others = [label for label in results if label != section.baseline]

    def compared(label: str, reference: str) -> list[Difference]:
        floor = floors.get(reference, ())
        return compare_predictions(results[reference], results[label], section.bootstrap, seed, floor)

    apart = {label: references[label] for label in others if references[label] in {*results} - {section.baseline}}
    retention = Retention(
        baseline=section.baseline,
        repetitions=section.bootstrap,
        rows=tuple(row for label in others for row in compared(label, section.baseline)),
        interval=METHOD,
        against={label: references[label] for label in others},
        held=tuple(row for label, reference in apart.items() for row in compared(label, reference)),
    )
    write_document(run / FOLDER / RETENTION_FILE, retention)
    return retention


def write_gate(
    run: Path,
    results: Results,
    section: EvaluateSection,
    seed: int,
    references: Mapping[str, str],
    floors: Floors = MappingProxyType({}),
) -> GateResult | None:
    """Return what the gate says of every model, and write eval/gate.json; without a gate, None and no such file.

    Each model is held against that of `references`, above what that answered without pictures (`floors`) where a
    condition says so.

    Raises:
        ConfigError: the gate can't be read, or names something that was not measured.
    """
    path = run / FOLDER / GATE_FILE
    if not section.gate:
        remove(path)
        return None
    result = hold_against(
        section.gate,
        section.baseline,
        results,
        section.bootstrap,
        seed,
        references=references,
        effect=section.effect,
        floors=floors,
    )
    write_document(path, result)
    return result

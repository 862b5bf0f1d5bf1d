"""Harness suites as stages of a run: one for each model and suite, skipped when up to date."""

from __future__ import annotations

from striate.artifacts import SuiteRecord, read_document
from striate.harness.suites import Suite, parse_suite, require
from striate.pipeline.preflight import labels_of
from striate.pipeline.resident_model import ResidentModel
from striate.pipeline.stage_keys import StageKeys

FOLDER = "eval/suites"


def checked_suites(keys: StageKeys) -> list[Suite]:
    """Return the harness suites of a run.

    Raises:
        StriateError: one can't be read, or is not done and its harness is not installed.
    """
    suites, labels = [parse_suite(text) for text in keys.run.config.evaluate.suites], labels_of(keys.run.config)
    for suite in suites:
        follows = [keys.suite(label, suite) for label in labels]
        if not all(map(keys.run.is_done, [f"suite:{label}.{suite.slug}" for label in labels], follows)):
            require(suite)
    return suites


def run_suite_stages(keys: StageKeys, models: ResidentModel) -> list[SuiteRecord]:
    """Return what each suite measured on each of `models`; write `eval/suites/LABEL.SUITE.json` and its samples.

    Raises:
        StriateError: as `checked_suites` and `striate.harness.running.run_suite`.
    """
    suites = checked_suites(keys)
    return [_run_stage(keys, models, label, suite) for label in labels_of(keys.run.config) for suite in suites]


def _run_stage(keys: StageKeys, models: ResidentModel, label: str, suite: Suite) -> SuiteRecord:
    from striate.harness.running import run_suite

    run, name = keys.run, f"{label}.{suite.slug}"
    files = [f"{FOLDER}/{name}.json", f"{FOLDER}/{name}.samples.jsonl"]
    with run.stage(f"suite:{name}", keys.suite(label, suite), files) as stage:
        if stage.stale:
            run_suite(
                models.load(label),
                suite,
                run.path / FOLDER,
                label=label,
                model=models.path_of(label),
                limit=run.config.evaluate.limit,
                batch_size=run.config.machine.eval_batch,
                progress=run.progress,
            )
    return read_document(run.path / files[0], SuiteRecord)

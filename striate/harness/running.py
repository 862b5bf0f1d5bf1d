"""Runs harness suites on one model and writes their records."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from striate.artifacts import SuiteRecord, write_document
from striate.errors import DataError
from striate.harness.outcome import Outcome
from striate.harness.suites import HARNESSES, Suite, require
from striate.models.io.load import Loaded, load_model
from striate.models.io.quiet import quietly
from striate.progress import Progress, Silent
from striate.storage.atomic import write_text

PACKAGES = ("torch", "transformers", "peft")
KEPT = ("doc_id", "target", "filtered_resps", "resps")


def run_suites(
    model_path: str,
    suites: Sequence[Suite],
    out: Path,
    *,
    label: str = "model",
    device: str = "auto",
    dtype: str = "auto",
    limit: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> list[SuiteRecord]:
    """Return what each suite measured on the model at `model_path`; write `out`/LABEL.SUITE.json and its samples.

    Args:
        model_path: a folder (checkpoint, adapter, pruned model) or a hub id.
        suites: as `parse_suite` reads them.
        out: the folder for the records, such as `run/eval/suites`.
        label: what to call the model.
        device: where it runs.
        dtype: in which number format.
        limit: the most items of each task.
        batch_size: the most rows that run side by side; left out, the harness's or the device's choice.
        progress: where to say what is being run.

    Raises:
        ConfigError: a harness that is not installed.
        SpecError: a task that it does not know.
        DataError: it could not run; the text has its own words.
    """
    for suite in suites:
        require(suite)
    loaded = load_model(model_path, device=device, dtype=dtype, merge=True)
    return [
        run_suite(
            loaded, suite, out, label=label, model=model_path, limit=limit, batch_size=batch_size, progress=progress
        )
        for suite in suites
    ]


def run_suite(
    loaded: Loaded,
    suite: Suite,
    out: Path,
    *,
    label: str,
    model: str,
    limit: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> SuiteRecord:
    """Return what one suite measured on a loaded model; see `run_suites`."""
    harness_version = require(suite)
    (progress or Silent()).say(f"{suite.harness} on {label}: {', '.join(suite.tasks)}")
    begin = time.perf_counter()
    outcome = _run(suite, loaded, limit, batch_size)
    record = SuiteRecord(
        label=label,
        model=model,
        harness=suite.harness,
        harness_version=harness_version,
        packages={name: version(name) for name in PACKAGES},
        tasks=suite.tasks,
        task_versions=outcome.versions,
        limit=limit,
        samples={task: len(rows) for task, rows in outcome.samples.items()},
        figures=outcome.figures,
        seconds=time.perf_counter() - begin,
    )
    name = f"{label}.{suite.slug}"
    write_text(out / f"{name}.samples.jsonl", "".join(_lines(outcome)))
    write_document(out / f"{name}.json", record)
    return record


def _run(suite: Suite, loaded: Loaded, limit: int | None, batch_size: int | None) -> Outcome:
    module = import_module(f"striate.harness.{HARNESSES[suite.harness].module}")
    try:
        with quietly(True):
            outcome: Outcome = module.run(suite, loaded, limit=limit, batch_size=batch_size)
    except (OSError, ValueError, KeyError, TypeError, AssertionError, ImportError, RuntimeError) as error:
        raise DataError(
            f"{suite.harness} could not run {', '.join(suite.tasks)}: {type(error).__name__}: {error}",
            "tasks whose data can be read here; most come from the hub",
            "set HF_HUB_OFFLINE=0 where there is a network, or give task files of your own with @FOLDER",
        ) from error
    return outcome


def _lines(outcome: Outcome) -> list[str]:
    return [
        json.dumps({"task": task, **_kept(row, outcome.figures.get(task, {}))}, ensure_ascii=False, default=str) + "\n"
        for task, rows in outcome.samples.items()
        for row in rows
    ]


def _kept(row: dict[str, Any], figures: dict[str, float]) -> dict[str, Any]:
    """Return what is kept of a harness's record of one item: no prompts, no pictures, but its scores."""
    scores = {name.partition(",")[0] for name in figures}
    return {name: value for name, value in row.items() if name in KEPT or name in scores}

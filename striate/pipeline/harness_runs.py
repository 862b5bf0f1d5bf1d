"""Harness suites as stages of a run: one for each model and suite, skipped when up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from striate.artifacts import SuiteRecord, read_document
from striate.harness.suites import Suite
from striate.runs.folder import RunFolder

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

FOLDER = "eval/suites"


def run_suite_stage(
    run: RunFolder, suite: Suite, label: str, *, model: str, key: dict[str, Any], load: Callable[[], Loaded]
) -> SuiteRecord:
    """Return what `suite` measured on the model called `label`; write `eval/suites/LABEL.SUITE.json` and its samples.

    Args:
        run: the run folder.
        suite: the harness and its tasks.
        label: the model's name in the run.
        model: where the model comes from.
        key: what the figures follow from.
        load: loads the model, called only when it is needed.

    Raises:
        StriateError: see `striate.harness.running.run_suites`.
    """
    from striate.harness.running import run_suite

    name = f"{label}.{suite.slug}"
    files = [f"{FOLDER}/{name}.json", f"{FOLDER}/{name}.samples.jsonl"]
    with run.stage(f"suite:{name}", key, files) as stage:
        if stage.stale:
            run_suite(
                load(),
                suite,
                run.path / FOLDER,
                label=label,
                model=model,
                limit=run.config.evaluate.limit,
                batch_size=run.config.machine.eval_batch,
                progress=run.progress,
            )
    return read_document(run.path / files[0], SuiteRecord)

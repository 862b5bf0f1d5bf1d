"""Harness suites as stages of a run: one for each model and suite, skipped when up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from striate.artifacts import SuiteRecord, read_document
from striate.harness.suites import Suite
from striate.progress import Progress
from striate.runs.folder import RunFolder

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

FOLDER = "eval/suites"


def run_suite_stage(
    run: RunFolder,
    suite: Suite,
    label: str,
    *,
    model: str,
    inputs: dict[str, Any],
    load: Callable[[], Loaded],
    progress: Progress,
) -> SuiteRecord:
    """Return what `suite` measured on the model called `label`; write `eval/suites/LABEL.SUITE.json` and its samples.

    Args:
        run: the run folder.
        suite: the harness and its tasks.
        label: the model's name in the run.
        model: where the model comes from.
        inputs: what the model follows from.
        load: gives the model when it is needed.
        progress: where to say what is being run.

    Raises:
        StriateError: see `striate.harness.running.run_suites`.
    """
    name = f"{label}.{suite.slug}"
    files = [f"{FOLDER}/{name}.json", f"{FOLDER}/{name}.samples.jsonl"]
    config = run.config

    def work() -> float:
        from striate.harness.running import run_suite
        from striate.models.io.peak_memory import peak_memory_gib

        loaded = load()
        run_suite(
            loaded,
            suite,
            run.path / FOLDER,
            label=label,
            model=model,
            limit=config.evaluate.limit,
            batch_size=config.machine.eval_batch,
            say=progress,
        )
        return peak_memory_gib(loaded.model.device)

    run.stage(f"suite:{name}", inputs, files, work)
    return read_document(run.path / files[0], SuiteRecord)

"""A trial that equals a model of the run itself, which was asked already: its answers are taken over."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from striate.artifacts import EvalRecord, Prediction, PruneRecord, read_if_there
from striate.errors import StriateError
from striate.pipeline.stage_keys import StageKeys


def asked_in_run(
    keys: StageKeys, removed: Sequence[int], healed: bool
) -> tuple[PruneRecord, EvalRecord, list[Prediction]] | None:
    """Return the run's own model without the layers `removed`, and its answers; None where it has none up to date.

    Args:
        keys: what the run's stages follow from.
        removed: the layers that the trial lacks, in rising order.
        healed: whether the trial is healed.
    """
    from striate.pipeline.model_evaluation import read_results

    run, config = keys.run, keys.run.config
    label = "pruned" if healed or not config.heals else "unhealed"
    if (healed and not config.heals) or f"evaluate:{label}" not in run.record.stages:
        return None
    # What is out of date or damaged raises, and is then asked as a trial.
    with suppress(StriateError):
        record = read_if_there(Path(run.path) / "prune.json", PruneRecord)
        same = record is not None and record.removed == tuple(removed) and run.is_done("prune", keys.prune())
        if record and same and run.is_done(f"evaluate:{label}", keys.evaluate(label)):
            return record, *read_results(run.path, [label])[label]
    return None

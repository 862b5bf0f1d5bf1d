"""Where a run's pruned model lies: in pruned/, or in unhealed/ where a healed one takes that name."""

from __future__ import annotations

import shutil

from striate.errors import ArtifactError
from striate.pipeline.pruning.healing_run import OUTPUTS, PRUNED, TEACHER, UNHEALED, WORK
from striate.pipeline.stage_keys import StageKeys
from striate.storage.fingerprints import fingerprint_of


def settle_pruned(keys: StageKeys) -> None:
    """Move the pruned model to where the run's config has it, so that a run may heal, or no more, without ranking anew.

    Raises:
        ArtifactError: the healed model is in the place, and nothing may be overwritten; or it can't be moved.
    """
    run, heals = keys.run, keys.run.config.heals
    here, there = (UNHEALED, PRUNED) if heals else (PRUNED, UNHEALED)
    if not heals and "heal" in run.record.stages:
        if not run.overwrite:
            raise ArtifactError(
                f"{run.path} holds a healed model, and healing is off",
                "the settings that it was healed with",
                "set heal.steps or heal.share again, or use --overwrite to have the pruned model alone",
            )
        run.forget("heal", OUTPUTS)
    if not heals:
        for name in (TEACHER, WORK):
            shutil.rmtree(run.path / name, ignore_errors=True)
    stage = run.record.stages.get("prune")
    if stage and stage.status == "done" and there in stage.outputs and stage.key == fingerprint_of(keys.prune()):
        run.rename_output("prune", there, here)

"""Pruning within a run: how many layers go, which, and the smaller model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from striate.artifacts import PruneRecord, Region, Scores, read_document, write_document
from striate.pipeline.model_origins import origin_of
from striate.pipeline.preflight import check_region
from striate.pipeline.pruning.healing_run import HealingRun
from striate.pipeline.pruning.layer_ranking import UNFINISHED, LayerRanking
from striate.pipeline.pruning.self_test_prompts import self_test_prompts
from striate.pipeline.resident_model import ResidentModel
from striate.pipeline.stage_keys import StageKeys
from striate.pipeline.trials.prune_trials import PruneTrials, Result
from striate.pipeline.trials.until_run import find_count
from striate.pruning.removal import removal_of

if TYPE_CHECKING:
    from striate.tasks.packs.items import Pack


@dataclass(frozen=True)
class PruningRun:
    """The pruning of one run.

    Attributes:
        keys: what its stages follow from.
        models: loads the model that is pruned.
        packs: returns the test packs, which trials ask.
        healing: of smaller models, where they are healed.
    """

    keys: StageKeys
    models: ResidentModel
    packs: Callable[[], Sequence[Pack]]
    healing: HealingRun

    def trials(self, most: int) -> PruneTrials:
        """Return the models that lack up to `most` layers."""
        healing = self.healing if self.keys.run.config.heal.on else None
        return PruneTrials(most, self.keys, self.models, self.packs, self.keys.asked(), healing)

    def prune(self, label: str, key: str, tuned: Callable[[], Result]) -> PruneRecord:
        """Return what was removed, after writing the smaller model to the folder `label`, and prune.json.

        `key` is that of the stage; `tuned` returns the tuned model's answers to the test packs, for `prune.until`.
        """
        from striate.stages.prune import prune

        run, inputs = self.keys.run, self.keys.inputs
        config, section = run.config, run.config.prune
        region = read_document(run.path / "region.json", Region)
        check_region(self.keys.tuning(whole=True), region)
        remove, until = removal_of(section, region), None
        unfinished = run.path / UNFINISHED
        ranking = LayerRanking(config, inputs.calibrating, unfinished, key, run.progress)
        if section.until:
            trials = self.trials(remove)
            until = find_count(trials, tuned)
            remove, ranking = until.count, trials.ranking
        whole = self.models.take(origin_of(config, "pruned"))
        if config.heals:
            # Now, as long as all layers are there; healing finds it on the disk.
            self.healing.take_rows(whole)
        _, record = prune(
            whole.model,
            region,
            remove,
            read_document(run.path / "scores.json", Scores) if section.needs_scores else None,
            section.scorer,
            cuts=ranking.cuts(whole, region, remove),
            compensate=ranking.compensation(whole),
            processor=whole.processor,
            out=run.path / label,
            test_inputs=self_test_prompts(whole.processor, config, inputs.train),
        )
        record = record.model_copy(update={"until": until})
        write_document(run.path / "prune.json", record)
        unfinished.unlink(missing_ok=True)
        return record

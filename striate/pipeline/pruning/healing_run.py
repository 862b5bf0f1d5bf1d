"""Healing within a run: its samples, what the tuned model says of them, and its training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.artifacts import PruneRecord, read_document, write_document
from striate.pipeline.pruning.self_test_prompts import self_test_prompts
from striate.pipeline.resident_model import ResidentModel
from striate.pipeline.stage_keys import StageKeys
from striate.progress import warn
from striate.storage.fingerprints import fingerprint_of
from striate.wording import plural

if TYPE_CHECKING:
    from striate.data.samples import Sample
    from striate.healing.teacher_rows import TeacherRows
    from striate.models.io.load import Loaded

TEACHER, WORK = ".teacher", ".healing"
PRUNED, UNHEALED = "pruned", "unhealed"
LOG, RECORD = "heal_log.jsonl", "heal.json"
OUTPUTS = (PRUNED, RECORD, LOG)


@dataclass
class HealingRun:
    """The healing of one run; `keys` are what its stages follow from."""

    keys: StageKeys

    @cached_property
    def samples(self) -> list[Sample]:
        """The samples that heal; where fewer than wanted have no picture, that is said."""
        from striate.data.held_out import training_data
        from striate.data.reading import read_many
        from striate.healing.sample_mix import healing_samples

        config, inputs = self.keys.run.config, self.keys.inputs
        section, seed = config.heal, config.seed
        pool = training_data(config.data, inputs.train, inputs.validate, seed).samples
        more = read_many(inputs.heal_text, options=inputs.options) if inputs.heal_text else []
        samples = healing_samples(pool, section, config.train.batch_size, seed, more)
        text, wanted = sum(not sample.images for sample in samples), int(section.text * len(samples) + 0.5)
        if text < wanted:
            warn(
                self.keys.run.progress,
                f"heal: {text} of {len(samples)} samples have no picture, and heal.text asks for {wanted}: text is what"
                " pruning loses first, so name some in heal.text_data",
            )
        return samples

    def take_rows(self, tuned: Loaded) -> TeacherRows | None:
        """Return what the tuned model says of the samples' answers, asked unless that is stored; None if not needed."""
        from striate.data.collate import Collator
        from striate.data.pictures import PictureLimits
        from striate.healing.teacher_pass import teacher_rows

        run, config = self.keys.run, self.keys.run.config
        machine, limits = config.machine, PictureLimits.of(config.machine)
        return teacher_rows(
            tuned.model,
            self.samples,
            Collator(tuned.processor, config.train.max_length, True, limits, config.data.broken == "skip"),
            config.heal,
            batch_size=machine.micro_batch,
            workers=machine.workers,
            folder=run.path / TEACHER,
            key=self._teacher_key,
            progress=run.progress,
        )

    def heal(self, models: ResidentModel) -> None:
        """Heal the pruned model; write pruned/, heal.json and heal_log.jsonl."""
        run, out = self.keys.run, self.keys.run.path
        rows = self._rows(models)
        unhealed = models.take(UNHEALED)
        _, record = self._healed(
            unhealed,
            read_document(out / "prune.json", PruneRecord),
            rows,
            out=out / PRUNED,
            work_dir=out / WORK,
            log=out / LOG,
            base_path=str(out / UNHEALED),
            base_weights=self.keys.model(UNHEALED),
            overwrite=run.overwrite,
            test_inputs=self_test_prompts(unhealed.processor, run.config, self.keys.inputs.train),
        )
        write_document(out / RECORD, record)
        losses = f"mean loss {record.first['loss']:.3f} -> {record.last['loss']:.3f}"
        done = f"{plural(record.steps, 'step')} on {plural(record.samples, 'sample')}"
        run.progress.say(f"heal: {done}, {losses}")

    def heal_trial(self, loaded: Loaded, pruned: PruneRecord, rows: TeacherRows | None, work: Path, key: str) -> Loaded:
        """Return a model that lacks layers, healed in place and not saved.

        Args:
            loaded: the model.
            pruned: which layers it lacks.
            rows: what `take_rows` returned before they went.
            work: a folder for checkpoints, from which an interrupted healing of the same `key` goes on.
            key: hash of what the model follows from.
        """
        from striate.models.io.load import Loaded

        model, _ = self._healed(
            loaded,
            pruned,
            rows,
            work_dir=work,
            log=work.with_suffix(".jsonl"),
            base_path=str(self.keys.run.path / "checkpoint"),
            base_weights=key,
            overwrite=True,
        )
        return Loaded(model, loaded.processor)

    def _healed(self, loaded: Loaded, pruned: PruneRecord, rows: TeacherRows | None, **places: Any) -> Any:
        """Return what `stages.heal.heal` does, by the run's settings; `places` are its arguments on files."""
        from striate.stages.heal import Healing, heal

        config = self.keys.settled()
        healing = Healing(pruned, self.samples, rows, config.heal, config.train, config.machine, config.seed)
        return heal(
            loaded.model,
            loaded.processor,
            healing,
            broken=config.data.broken,
            progress=self.keys.run.progress,
            **places,
        )

    def _rows(self, models: ResidentModel) -> TeacherRows | None:
        """Return what `take_rows` does; the tuned model is loaded only where its rows are not stored."""
        from striate.healing.teacher_pass import stored_rows

        if not self.keys.run.config.heal.needs_teacher:
            return None
        stored = stored_rows(self.keys.run.path / TEACHER, self._teacher_key, self.samples)
        return stored if stored is not None else self.take_rows(models.load("tuned"))

    @cached_property
    def _teacher_key(self) -> str:
        return fingerprint_of(self.keys.teacher())

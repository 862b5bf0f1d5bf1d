"""Makes the model without k layers, asks it, and keeps its answers; nothing is asked twice, and no model is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.artifacts import (
    EvalRecord,
    Prediction,
    Region,
    Scores,
    Trial,
    TrialSpeed,
    read_document,
    read_lines,
    write_document,
    write_lines,
)
from striate.config import RunConfig
from striate.errors import ArtifactError, DataError, first_line
from striate.pipeline.model_evaluation import remove
from striate.pipeline.pruning.healing_run import HealingRun
from striate.pipeline.pruning.layer_ranking import LayerRanking
from striate.pipeline.resident_model import ResidentModel
from striate.pipeline.stage_keys import StageKeys
from striate.pipeline.trials.adopted import asked_in_run
from striate.progress import warn
from striate.runs.folder import RunFolder
from striate.storage.atomic import check_file_place
from striate.storage.fingerprints import fingerprint_of

if TYPE_CHECKING:
    from striate.artifacts import Cut, PruneRecord
    from striate.models.io.load import Loaded
    from striate.tasks.packs.items import Pack

FOLDER = "trials"
ANSWERS, REPLIES = ".predictions.jsonl", ".replies.jsonl"
# How speed is measured (`striate.pruning.generation_speed`); of a model that takes fewer tokens, a shorter prompt.
PROMPT_TOKENS, NEW_TOKENS, REPEATS = 776, 32, 3

Result = tuple[EvalRecord, list[Prediction]]


@dataclass
class PruneTrials:
    """The models of one run that lack layers, from none to `most`, by one ranking.

    What was found is kept in `trials/`: each model's scores and answers under a key of what they follow from, the
    ranking, and speeds. A trial that was interrupted asks only what had not been answered.

    Attributes:
        most: the most layers that are removed.
        keys: what the run's stages follow from.
        models: loads the tuned model.
        packs: returns the test packs to ask.
        asked: what the answers follow from, besides the model.
        healing: how smaller models are healed, where they are.
    """

    most: int
    keys: StageKeys
    models: ResidentModel
    packs: Callable[[], Sequence[Pack]]
    asked: dict[str, Any]
    healing: HealingRun | None = None
    _cuts: tuple[Cut, ...] = field(default=(), init=False)

    @property
    def run(self) -> RunFolder:
        """The run."""
        return self.keys.run

    @cached_property
    def config(self) -> RunConfig:
        """The config of the run, with `prune.remove` at the most layers that are tried."""
        section = self.run.config.prune.model_copy(update={"remove": self.most})
        return self.run.config.model_copy(update={"prune": section})

    @cached_property
    def region(self) -> Region:
        """The layers that stay."""
        return read_document(self.run.path / "region.json", Region)

    @cached_property
    def ranking(self) -> LayerRanking:
        """The greedy ranking, which is kept: one of fewer layers is the beginning of one of more."""
        key = fingerprint_of(self.keys.ranking(self.config.prune))
        file = self.run.path / FOLDER / "ranking.json"
        return LayerRanking(self.config, self.keys.inputs.calibrating, file, key, self.run.progress)

    @cached_property
    def _scores(self) -> Scores | None:
        return read_document(self.run.path / "scores.json", Scores) if self.config.prune.needs_scores else None

    def follows(self, counts: Sequence[int]) -> dict[str, Any]:
        """Return what a curve at `counts` follows from."""
        return {
            "ranking": self.keys.ranking(self.config.prune),
            "compensation": self._compensation,
            "asked": self.asked,
            "healing": self._healing if self.healing else {},
            "speed": [PROMPT_TOKENS, NEW_TOKENS, REPEATS],
            "counts": list(counts),
        }

    def removed(self, count: int) -> tuple[int, ...]:
        """Return which layers go where `count` do, in rising order: those that `prune` would remove."""
        from striate.stages.prune import chosen_layers

        return chosen_layers(self.region, count, self._scores, self.config.prune.scorer, self._first(count))[1]

    def result(self, count: int, healed: bool = False) -> Result:
        """Return the record and answers of the model without `count` layers, made and asked where they are not kept."""
        self.make(count, [healed])
        return self.kept(count, healed) or self._lost(count, healed)

    def kept(self, count: int, healed: bool) -> Result | None:
        """Return the record and answers of an earlier trial; None where it was not made, or can't be read."""
        path, trial = self._path(count, healed), self.trial(count, healed)
        try:
            predictions = read_lines(path.with_suffix(ANSWERS), Prediction)
        except ArtifactError:
            return None
        whole = trial is not None and len(predictions) == sum(task.n for task in trial.record.tasks)
        return (trial.record, predictions) if trial and whole else None

    def trial(self, count: int, healed: bool) -> Trial | None:
        """Return what is kept of an earlier trial beside its answers; None where it was not made, or can't be read."""
        try:
            trial = read_document(self._path(count, healed), Trial)
        except ArtifactError:
            return None
        return trial if trial.key == self._key(count, healed) else None

    def speed(self, count: int) -> TrialSpeed | None:
        """Return how fast the model without `count` layers was; None where that was not measured."""
        try:
            speed = read_document(self._speed_path(count), TrialSpeed)
        except ArtifactError:
            return None
        return speed if speed.key == self._speed_key(count) else None

    def make(self, count: int, forms: Sequence[bool], *, speed: bool = False) -> None:
        """Make and ask the model without `count` layers, in each of `forms` (healed or not) that is not kept.

        With `speed`, that of the tuned model and of the smaller one are measured, one right after the other.
        """
        missing = [
            healed for healed in forms if self.kept(count, healed) is None and not self._taken_over(count, healed)
        ]
        timed = speed and self.speed(count) is None
        if self.healing and True in forms and True not in missing:
            # A kill after its answers were kept left its work.
            self._clear_work(count)
        if not missing and not timed:
            return
        self._check_places(count, missing, timed)
        # Known before the model is changed.
        self.removed(count)
        tuned = self.models.take("tuned")
        rows = self.healing.take_rows(tuned) if self.healing and True in missing else None
        whole = self._measured(tuned) if timed else None
        pruned = self._cut(tuned, count)
        smaller = self._measured(tuned) if whole else None
        if whole and smaller:
            write_document(
                self._speed_path(count), TrialSpeed(key=self._speed_key(count), whole=whole, smaller=smaller)
            )
        if False in missing:
            self._ask(tuned, count, pruned)
        if True in missing and self.healing:
            work, key = self._work(count), self._key(count, True)
            healed = self.healing.heal_trial(tuned, pruned, rows, work, key)
            self._ask(healed, count, pruned, healed=True)
            self._clear_work(count)

    def _check_places(self, count: int, missing: Sequence[bool], timed: bool) -> None:
        """Raise where a folder has the name of a file that the trial writes."""
        trials = [self._path(count, healed) for healed in missing]
        files = [path.with_suffix(suffix) for path in trials for suffix in (".json", ANSWERS, REPLIES)]
        for file in (*files, *([self._speed_path(count)] if timed else ())):
            check_file_place(file)

    def _taken_over(self, count: int, healed: bool) -> bool:
        """Return whether the run asked such a model of its own; its answers are then those of the trial."""
        own = asked_in_run(self.keys, self.removed(count), healed) if self.asked == self.keys.asked() else None
        if own is None:
            return False
        pruned, record, predictions = own
        record = record.model_copy(update={"label": label_of(count, healed)})
        self._keep(count, healed, pruned, record, predictions)
        self.run.progress.say(f"{record.label}: asked already as a model of this run")
        return True

    def _first(self, count: int) -> tuple[Cut, ...]:
        """Return the cuts by which `count` layers go beside those that the region gives up, ranked as far as needed."""
        wanted = max(0, count - len(self.region.removable)) if self.config.prune.greedy else 0
        if len(self._cuts) < wanted:
            kept = self.ranking.kept_cuts(self.region, count)
            self._cuts = kept or self.ranking.cuts(self.models.load("tuned"), self.region, count)
        return self._cuts[:wanted]

    def _cut(self, tuned: Loaded, count: int) -> PruneRecord:
        """Return what was removed from the tuned model, in place."""
        from striate.stages.prune import prune

        section = self.config.prune
        compensate = self.ranking.compensation(tuned) if count else None
        cuts = self._first(count)
        return prune(tuned.model, self.region, count, self._scores, section.scorer, cuts=cuts, compensate=compensate)[1]

    def _ask(self, loaded: Loaded, count: int, pruned: PruneRecord, *, healed: bool = False) -> None:
        """Ask one model and keep its scores and answers; replies are kept meanwhile."""
        from striate.stages.evaluate import evaluate

        path, key = self._path(count, healed), self._key(count, healed)
        journal = path.with_suffix(REPLIES)
        record, predictions = evaluate(
            loaded.model,
            loaded.processor,
            self.packs(),
            label=label_of(count, healed),
            model_name=str(self.run.path / "checkpoint"),
            config=self.config.evaluate,
            machine=self.config.machine,
            seed=self.config.seed,
            progress=self.run.progress,
            journal=journal,
            journal_key=key,
        )
        self._keep(count, healed, pruned, record, predictions)
        remove(journal)

    def _keep(
        self, count: int, healed: bool, pruned: PruneRecord, record: EvalRecord, predictions: list[Prediction]
    ) -> None:
        """Write a trial: the answers first, so that a record never lacks them."""
        path = self._path(count, healed)
        write_lines(path.with_suffix(ANSWERS), predictions)
        trial = Trial(
            key=self._key(count, healed),
            removed=pruned.removed,
            healed=healed,
            record=record,
            bytes=pruned.bytes_after,
            whole_bytes=pruned.bytes_before,
            compensation=pruned.compensation,
        )
        write_document(path, trial)

    def _measured(self, loaded: Loaded) -> Any:
        """Return how fast a model is; None, and said, where its prompts don't fit into it."""
        from striate.models.structure.anatomy import unwrap
        from striate.pruning.generation_speed import measure_speed
        from striate.tasks.inference.text_tokens import context_limit

        length = min(PROMPT_TOKENS, context_limit(unwrap(loaded.model)) - NEW_TOKENS)
        try:
            return measure_speed(
                loaded.model, loaded.processor, prompt_tokens=length, new_tokens=NEW_TOKENS, repeats=REPEATS
            )
        except DataError as error:
            warn(self.run.progress, f"speed is not measured: {first_line(error)}")
            return None

    @cached_property
    def _checkpoint(self) -> str:
        return self.keys.model("tuned")

    @cached_property
    def _compensation(self) -> dict[str, Any]:
        return self.keys.compensation(self.config.prune)

    @cached_property
    def _healing(self) -> dict[str, Any]:
        return self.keys.healing()

    def _key(self, count: int, healed: bool) -> str:
        removed = self.removed(count)
        follows = {
            "checkpoint": self._checkpoint,
            "removed": list(removed),
            "compensation": self._compensation if removed else {},
            "asked": self.asked,
        }
        return fingerprint_of({**follows, "healing": self._healing} if healed else follows)

    def _speed_key(self, count: int) -> str:
        machine = self.config.machine
        settings = [PROMPT_TOKENS, NEW_TOKENS, REPEATS, machine.device, machine.dtype]
        removed = list(self.removed(count))
        return fingerprint_of({"checkpoint": self._checkpoint, "removed": removed, "settings": settings})

    def _path(self, count: int, healed: bool) -> Path:
        name = f"{count:03}{'-healed' if healed else ''}-{self._key(count, healed)[:12]}"
        return self.run.path / FOLDER / f"{name}.json"

    def _work(self, count: int) -> Path:
        return self._path(count, True).with_suffix(".healing")

    def _clear_work(self, count: int) -> None:
        """Remove what healing keeps of its way."""
        shutil.rmtree(self._work(count), ignore_errors=True)
        remove(self._work(count).with_suffix(".jsonl"))

    def _speed_path(self, count: int) -> Path:
        return self.run.path / FOLDER / f"{count:03}-speed-{self._speed_key(count)[:12]}.json"

    def _lost(self, count: int, healed: bool) -> Result:
        raise ArtifactError(
            f"{self._path(count, healed)} was written and can't be read",
            "files of trials/ as striate wrote them",
            "remove it and call again",
        )


def label_of(count: int, healed: bool) -> str:
    """Return what the model without `count` layers is called in records and on the page."""
    if not count:
        return "tuned"
    return f"{count} layer{'' if count == 1 else 's'} removed{', healed' if healed else ''}"

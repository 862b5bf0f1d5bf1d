"""One run of a sweep: the whole flow, in which runs that are alike share what follows from the start model alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.artifacts import Scores, TrainRecord, read_document
from striate.config import load_config
from striate.errors import StriateError
from striate.pipeline.flow import Flow
from striate.pipeline.preflight import labels_of
from striate.progress import Silent
from striate.runs.folder import RUN_FILE
from striate.runs.run_record import RunRecord
from striate.storage.fingerprints import fingerprint_of
from striate.storage.held_folders import alone_in

if TYPE_CHECKING:
    from striate.pipeline.model_evaluation import Results

RUNS, SHARED, LOGS, CONFIGS = "runs", "shared", "logs", "configs"
_OWN = ("tuned", "unhealed", "pruned")


class LogLines(Silent):
    """A progress that keeps lines in a file, each with its time."""

    def __init__(self, file: Path) -> None:
        """Write to the end of `file`."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file

    def say(self, text: str) -> None:
        """Add a line."""
        with self._file.open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC):%H:%M:%S} {text}\n")


class ArmFlow(Flow):
    """The flow of one run; scores and answers that another run of the sweep has of the same inputs are taken over.

    Attributes:
        compared: whether the sweep's other runs are held against it.
    """

    compared = False

    @property
    def scores_wanted(self) -> bool:
        """Whether layers are chosen or removed by scores: a sweep has no use for others."""
        return self.keys.choice_needs_scores or self.config.prune.needs_scores

    @property
    def asked_blind(self) -> list[str]:
        """Which models are asked without their pictures too: also the one that other runs are held against."""
        blind, labels = super().asked_blind, labels_of(self.config)
        own = next((label for label in _OWN if label in labels), "")
        wanted = {*blind, own} if self.compared and self.config.evaluate.floor else {*blind}
        return [label for label in labels if label in wanted]

    def analyze(self) -> Scores:
        """Score every decoder layer, or take over the scores of a run that has the same inputs."""
        with self._shared("analyze", self.keys.analyze()):
            return super().analyze()

    def train(self) -> TrainRecord:
        """Tune the region and the projector; before that, ask the models that runs share and no other run is asking.

        Runs that began together would wait for it when they have trained.
        """
        if self.config.evaluate.packs:
            for label in self.labels:
                self._ask_shared(label, label in self._floors, wait=False)
        return super().train()

    def _results(self, labels: Sequence[str], blind: Sequence[str] = ()) -> Results:
        """Return records and answers of models, those of models that runs share taken over where they are there."""
        for label in labels:
            self._ask_shared(label, label in blind)
        return super()._results(labels, blind)

    def _ask_shared(self, label: str, blind: bool, *, wait: bool = True) -> None:
        """Ask a model that runs share, or take its answers over, those without pictures too where it is `blind`.

        Where another run asks it at the moment and `wait` is false, nothing is done.
        """
        if label in _OWN:
            return
        if self._asked(f"evaluate:{label}", self.keys.evaluate(label), label, (), wait) and blind:
            self._asked(f"floor:{label}", self.keys.floor(label), label, (label,), wait)

    def _asked(self, stage: str, inputs: Mapping[str, Any], label: str, blind: Sequence[str], wait: bool) -> bool:
        """Return whether the answers of a stage are there, after asking for them where it is this run's turn."""
        with self._shared(stage, inputs, wait=wait) as alone:
            if alone and not self.run.is_done(stage, inputs):
                super()._results([label], blind)
        return alone

    @contextmanager
    def _shared(self, stage: str, inputs: Mapping[str, Any], *, wait: bool = True) -> Iterator[bool]:
        """Context of a stage that other runs may do at the same time: one does it, the others wait and take it over.

        Yields whether it is this run's turn: without `wait` another one may be at it.
        """
        if self.run.is_done(stage, inputs):
            yield True
            return
        key, runs = fingerprint_of(inputs), self.out.parent
        with alone_in(runs.parent / SHARED / key[:16], wait=wait) as alone:
            if alone:
                self._take_over(stage, key, runs)
            yield alone

    def _take_over(self, stage: str, key: str, runs: Path) -> None:
        for other in sorted(path for path in runs.iterdir() if path != self.out and path.is_dir()):
            # A run that is being written, or whose files were changed, is no source.
            with suppress(StriateError):
                record = read_document(other / RUN_FILE, RunRecord).stages.get(stage)
                if record and record.status == "done" and record.key == key:
                    self.run.take_over(stage, other, record)
                    self.progress.say(f"{stage}: taken over from {other.name}")
                    return


def run_arm(config: Path, out: Path, log: Path, overwrite: bool = False, compared: bool = False) -> None:
    """Do one run of a sweep, or what is left of it; what happens goes to the file `log`.

    `compared` says whether the others are held against it.
    """
    command, progress = f"striate run {config}", LogLines(log)
    flow = ArmFlow(load_config(config), out, progress=progress, command=command, overwrite=overwrite)
    flow.compared = compared
    flow.everything()

"""What `prune` reads calibration samples for: ranking layers by the tuned model's answers, and compensation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.artifacts import Compensation, Cut, Region, UnfinishedRanking, read_document, write_document
from striate.config import RunConfig
from striate.errors import ArtifactError
from striate.pipeline.run_inputs import usable_calibration
from striate.progress import Progress
from striate.storage.atomic import check_file_place

if TYPE_CHECKING:
    from striate.data.samples import Sample
    from striate.models.io.load import Loaded

UNFINISHED = ".ranking.json"


@dataclass(frozen=True)
class LayerRanking:
    """A greedy ranking within a run.

    Attributes:
        config: of the run.
        data: the calibration set's paths.
        file: where the cuts so far are kept until all are made.
        key: hash of what the cuts follow from; those of another key are not gone on with.
        progress: where to say how far it is.
    """

    config: RunConfig
    data: Sequence[Path]
    file: Path
    key: str
    progress: Progress

    def cuts(self, tuned: Loaded, region: Region, remove: int) -> tuple[Cut, ...]:
        """Return the cuts beside those layers that the region itself gives up; none where no answers are asked.

        Args:
            tuned: the model whose answers are asked.
            region: layers that stay.
            remove: how many of the others go.
        """
        from striate.pruning.greedy_ranking import Question, rank_greedily

        section = self.config.prune
        if not section.greedy or len(region.removable) >= remove:
            return ()
        check_file_place(self.file)
        known = self._known()
        wanted = remove - len(region.removable)
        if known:
            # Of `prune.until` more may be known than go.
            self.progress.say(f"prune: goes on after cut {min(len(known), wanted)} of {wanted}")
        return rank_greedily(
            tuned.model,
            self._batches(tuned),
            region,
            remove,
            Question(section.scorer, section.text_weight),
            known=known,
            keep=lambda cuts: write_document(self.file, UnfinishedRanking(key=self.key, cuts=tuple(cuts))),
            progress=self.progress,
        )

    def kept_cuts(self, region: Region, remove: int) -> tuple[Cut, ...] | None:
        """Return what `cuts` does where all cuts are kept already, or no answers are asked; else None."""
        wanted = max(0, remove - len(region.removable)) if self.config.prune.greedy else 0
        known = self._known() if wanted else ()
        return known[:wanted] if len(known) >= wanted else None

    def compensation(self, tuned: Loaded) -> Callable[[tuple[int, ...]], Compensation | None] | None:
        """Return what changes `tuned` so that the layers it is called with are missed less; None without a method."""
        from striate.pruning.compensation.compensate import compensate, refit_if_possible

        how = self.config.prune.compensate
        if how == "none" or not self.config.prune.remove:
            return None
        if how == "auto":
            return partial(refit_if_possible, tuned.model, self._batches(tuned), progress=self.progress)
        return partial(compensate, tuned.model, self._batches(tuned), how=how, progress=self.progress)

    def _batches(self, tuned: Loaded) -> Any:
        """Return the calibration set as training batches, as training leaves out what it can't use."""
        from striate.data.collate import Collator
        from striate.data.pictures import PictureLimits
        from striate.pruning.greedy_ranking import calibration

        machine = self.config.machine
        samples = usable_calibration("prune", self._samples, tuned.processor, self.config, self.progress)
        collator = Collator(tuned.processor, self.config.train.max_length, True, PictureLimits.of(machine))
        return calibration(samples, collator, machine.micro_batch)

    @cached_property
    def _samples(self) -> Sequence[Sample]:
        """The calibration set, read once for the ranking and for every compensation."""
        from striate.data.reading import read_many
        from striate.data.sources.source_options import SourceOptions

        options = SourceOptions.of(self.config.data)
        return read_many(self.data, self.config.prune.samples, self.config.seed, options)

    def _known(self) -> tuple[Cut, ...]:
        """Return the first cuts of the same ranking, if it was interrupted; what can't be read is ranked again."""
        try:
            kept = read_document(self.file, UnfinishedRanking)
        except ArtifactError:
            return ()
        return kept.cuts if kept.key == self.key else ()

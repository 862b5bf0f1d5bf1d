"""The interface of runners: a calibration in, measurements out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from striate.models.structure.anatomy import Anatomy
from striate.progress import Advance, Progress
from striate.scorers.base import LayerScorer, Source
from striate.scorers.statistics.measurement import Measurement
from striate.scorers.streaming.batches import Batches


@dataclass(frozen=True)
class Calibration:
    """One analysis: the model, and what its scorers read.

    Attributes:
        core: an LVLM in eval mode, without wrappers.
        processor: its processor.
        anatomy: its parts.
        batches: the calibration set as training batches, answers labelled.
        base: the folder of the untuned checkpoint, for scorers that compare with it.
        pairs: pairs of drawn pictures for each attribute.
        seed: of drawn pictures.
    """

    core: Any
    processor: Any
    anatomy: Anatomy
    batches: Batches
    base: Path | None
    pairs: int
    seed: int


@dataclass(frozen=True)
class Runner:
    """Runs all scorers of some sources together.

    Attributes:
        sources: those that it serves; each is served by one runner.
        run: `(calibration, scorers, advance) -> measurements`, in the order of the scorers.
        label: of its progress bar; without one there is none.
        total: the bar's end; by default the number of samples.
        by_sample: whether it reads the calibration set; its rows can then be chosen by task.
    """

    sources: tuple[Source, ...]
    run: Callable[[Calibration, Sequence[LayerScorer], Advance], list[Measurement]]
    label: str = ""
    total: Callable[[Calibration], int] = lambda calibration: len(calibration.batches.samples)
    by_sample: bool = True

    def measure(
        self, calibration: Calibration, scorers: Sequence[LayerScorer], progress: Progress
    ) -> list[Measurement]:
        """Return what `run` measures, under a progress bar."""
        if not self.label:
            return self.run(calibration, scorers, lambda count: None)
        with progress.track(self.label, self.total(calibration)) as advance:
            return self.run(calibration, scorers, advance)

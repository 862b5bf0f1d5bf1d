"""Layer scores as named series: a scorer on all samples, its parts by modality, and each task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from striate.artifacts import LayerScores, Peak, Scores, SplitHalf
from striate.wording import amount, words

SeriesKind = Literal["all", "part", "task", "scorer"]
FEW_DIGITS = ".4g"


@dataclass(frozen=True)
class Series:
    """One value a layer with its 95% interval; `low` and `high` are empty where there is none."""

    name: str
    kind: SeriesKind
    values: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    samples: int = 0
    peak: Peak | None = None
    split_half: SplitHalf | None = None

    def tip(self, layer: int) -> str:
        """Return one layer's value and interval in words."""
        value = f"layer {layer} · {self.name}: {self.values[layer]:{FEW_DIGITS}}"
        if self.low and self.high and self.samples:
            value += f", 95% interval {self.low[layer]:{FEW_DIGITS}} to {self.high[layer]:{FEW_DIGITS}}"
        return value + (f", {amount(self.samples, 'sample')}" if self.samples else "")

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value, intervals included."""
        return min((*self.values, *self.low)), max((*self.values, *self.high))


def whole(entry: LayerScores, name: str = "all samples", kind: SeriesKind = "all") -> Series:
    """Return a scorer's values on all tokens as a series."""
    return Series(name, kind, entry.values, entry.low, entry.high, entry.samples, entry.peak, entry.split_half)


def parts_of(entry: LayerScores) -> list[Series]:
    """Return a scorer's parts, such as image and text tokens."""
    return [
        Series(words(part), "part", values, entry.part_low.get(part, ()), entry.part_high.get(part, ()), entry.samples)
        for part, values in entry.parts.items()
    ]


def tasks_of(scores: Scores, scorer: str) -> list[Series]:
    """Return a scorer's values by task; tasks that it did not score are left out."""
    by_task = [(task, entry) for task, entries in scores.tasks.items() for entry in entries if entry.scorer == scorer]
    return [whole(entry, words(task), "task") for task, entry in by_task]


def series_of(scores: Scores, scorer: str) -> list[Series]:
    """Return everything that a scorer says: all samples, its parts, each task."""
    entry = scores.of(scorer)
    return [whole(entry), *parts_of(entry), *tasks_of(scores, scorer)]


def scorers_with_tasks(scores: Scores) -> list[str]:
    """Return the scorers that were run by task, in order."""
    return [entry.scorer for entry in scores.scorers if tasks_of(scores, entry.scorer)]


def stability(split: SplitHalf | None, samples: int) -> str:
    """Return in words how far two halves of the samples rank the layers alike, and how many samples would do."""
    if not samples:
        return "reads weights only: no sampling error"
    if split is None:
        return f"{amount(samples, 'sample')}, too few to halve" if samples < 4 else "not measured"
    halves = f"halves agree at {split.rank_correlation:.2f} ({split.low:.2f} to {split.high:.2f})"
    if split.samples_needed is None:
        return f"{halves}: the ranking is noise at this size"
    enough = "enough" if split.samples_needed <= samples else "more than there are"
    return f"{halves}; 0.9 takes about {amount(split.samples_needed, 'sample')}, {enough}"


def names_of(series: Sequence[Series]) -> list[str]:
    """Return the names of `series`."""
    return [scored.name for scored in series]

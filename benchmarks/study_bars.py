"""The bars of docs/study.md as functions: figures in, a word out. What they leave open is read as is said here."""

from __future__ import annotations

from collections.abc import Sequence

from striate.artifacts import Difference

HOLDS, FAILS, CANT_TELL, ALIKE = "holds", "does not hold", "can't tell", "alike"

LEAST_ABOVE_FLOOR = 10.0
"""In points: a task counts where tuning all layers ends as far above the floor."""
LEAST_ITEMS = 20
"""Of a task that counts: the mean takes every task for one."""
LEAST_RAW, LEAST_OF_SIGHT, LEAST_END = 99.0, 98.0, 98.0
PAPER_KEPT = {16: 99.4, 6: 99.0, 4: 98.0, 2: 96.5, 1: 91.9}
"""Claim 2: % of all layers kept, by layers of 32; a quarter of them is claim 1."""
SEEDS, SEEDS_OF_BOTH = 3, 5
"""Of an arm that a verdict is about; of all layers and `uniform:25%`."""


def counts(score: float, floor: float, items: int) -> bool:
    """Return whether a task of so many items counts; scores in points."""
    return items >= LEAST_ITEMS and round(score - floor, 9) >= LEAST_ABOVE_FLOOR


def nearly_all_kept(visual: Difference | None) -> str:
    """Return the word on claim 1. The interval is that of raw retention: above the floor the bar would say it twice."""
    return _kept(visual, LEAST_RAW, LEAST_OF_SIGHT, LEAST_END)


def paper_kept(visual: Difference | None, layers: int, of: int) -> str:
    """Return the word on claim 2 for so many evenly spaced layers, or nothing where the paper has no figure of it."""
    figure = PAPER_KEPT.get(round(layers * 32 / of))
    if figure is None:
        return ""
    least = figure - 1
    return _kept(visual, least, min(LEAST_OF_SIGHT, least), min(LEAST_END, least))


def _kept(visual: Difference | None, raw: float, of_sight: float, end: float) -> str:
    if visual is None or visual.retention is None or visual.retention_low is None or visual.retention_high is None:
        return CANT_TELL
    if visual.retention_high < end:
        return FAILS
    above = visual.above_floor is not None and visual.above_floor >= of_sight
    return HOLDS if visual.retention >= raw and above and visual.retention_low >= end else CANT_TELL


def less_kept(visual: Difference | None, spread: float | None) -> str:
    """Return the word on claims 3a and 3b: whether an arm keeps less than `uniform:25%`.

    Args:
        visual: the arm against `uniform:25%`.
        spread: standard deviation of the difference over seeds, in points; None of one seed, which tells nothing.
    """
    if visual is None or visual.low is None or visual.high is None or spread is None:
        return CANT_TELL
    if 100 * abs(visual.difference) <= 2 * spread:
        return ALIKE
    return HOLDS if visual.high < 0 else FAILS if visual.low > 0 else ALIKE


def text_kept(text: Difference | None, perplexities: Sequence[Difference]) -> str:
    """Return the word on claim 4; a perplexity that is higher, though not with its whole interval, tells nothing."""
    if text is None or text.high is None:
        return CANT_TELL
    if text.high < 0 or any(row.low is not None and row.low > 0 for row in perplexities):
        return FAILS
    return CANT_TELL if any(row.difference > 0 for row in perplexities) else HOLDS


def would(word: str) -> str:
    """Return the word of an arm that a claim is not about."""
    return {HOLDS: "would hold", FAILS: "would not hold"}.get(word, word)

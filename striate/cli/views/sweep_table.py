"""The table of a sweep for the terminal."""

from __future__ import annotations

from rich.table import Table

from striate.artifacts import SweepRecord
from striate.reporting.sweep_wording import (
    ABOVE_FLOOR,
    COMPARED,
    above_floor_told,
    cells,
    columns,
    has_floor,
    kept_told,
    score_told,
    text_told,
)

BEST = "*"


def sweep_table(record: SweepRecord) -> Table:
    """Return a row a group of runs: its settings, scores over seeds, and what they keep."""
    shown = Table(box=None, pad_edge=False)
    named = columns(record)
    for name in named.values():
        shown.add_column(name)
    above = [ABOVE_FLOOR] if has_floor(record) else []
    for head in ("model", "seeds", "visual", "kept", *above, "text", "kept", "seconds"):
        shown.add_column(head, justify="left" if head == "model" else "right")
    for group in record.groups:
        marked = f"{group.model}{f' {BEST}' if group.best else ''}{f' {COMPARED}' if group.compared else ''}"
        seconds = "" if group.train_seconds is None else f"{group.train_seconds:.0f}"
        visual = [score_told(group.visual), kept_told(group.visual)]
        visual += [above_floor_told(group.visual)] if above else []
        scores = str(len(group.seeds)), *visual, text_told(group), kept_told(group.text)
        shown.add_row(*cells(group, named), marked, *scores, seconds)
    return shown

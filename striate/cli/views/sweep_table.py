"""The table of a sweep for the terminal."""

from __future__ import annotations

from rich.table import Table

from striate.artifacts import SweepRecord
from striate.reporting.sweep_wording import COMPARED, cells, columns, score_heads, scores_told

BEST = "*"


def sweep_table(record: SweepRecord) -> Table:
    """Return a row a group of runs: its settings, scores over seeds, and what they keep."""
    shown = Table(box=None, pad_edge=False)
    named = columns(record)
    for name in named.values():
        shown.add_column(name)
    heads = score_heads(record)
    for head in ("model", "seeds", *heads, "seconds"):
        shown.add_column(head, justify="left" if head == "model" else "right")
    for group in record.groups:
        marked = f"{group.model}{f' {BEST}' if group.best else ''}{f' {COMPARED}' if group.compared else ''}"
        seconds = "" if group.train_seconds is None else f"{group.train_seconds:.0f}"
        shown.add_row(*cells(group, named), marked, str(len(group.seeds)), *scores_told(group, heads), seconds)
    return shown

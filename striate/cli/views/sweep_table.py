"""The table of a sweep for the terminal."""

from __future__ import annotations

from rich.table import Table

from striate.artifacts import SweepRecord
from striate.reporting.sweep_page import kept_told, score_told


def sweep_table(record: SweepRecord) -> Table:
    """Return a row a group of runs: its settings, scores over seeds, and what they keep."""
    shown = Table(box=None, pad_edge=False)
    paths = [name for name in record.varied if any(name in group.settings for group in record.groups)]
    for name in paths:
        shown.add_column(name.rpartition(".")[2])
    for head in ("model", "seeds", "visual", "kept", "text", "kept", "seconds"):
        shown.add_column(head, justify="left" if head == "model" else "right")
    for group in record.groups:
        settings = [str(group.settings.get(name, "")) for name in paths]
        marked = f"{group.model}{' *' if group.best else ''}"
        seconds = "" if group.train_seconds is None else f"{group.train_seconds:.0f}"
        scores = [told(score) for score in (group.visual, group.text) for told in (score_told, kept_told)]
        shown.add_row(*settings, marked, str(len(group.seeds)), *scores, seconds)
    return shown

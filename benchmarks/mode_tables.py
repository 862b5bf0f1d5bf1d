"""The table of `mode_quality.py`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

_HEAD = "| mode | seeds | visual (sd) | of exact, 95% | by seed | text (sd) | of exact, 95% | training s |"


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return Markdown with a row a mode."""
    return "\n".join([_HEAD, "|" + "---|" * (_HEAD.count("|") - 1), *(_row(line) for line in lines)])


def _row(line: dict[str, Any]) -> str:
    """Return one row."""
    visual, text = line["visual"], line["text"]
    cells = [
        f"{line['mode']}: {line['says']}",
        str(len(line["seeds"])),
        _mean(visual["scores"]),
        _interval(visual["retention"]),
        ", ".join(f"{value:.1f}" for value in visual["retention_by_seed"]),
        _mean(text["scores"]),
        _interval(text["retention"]),
        f"{statistics.median(line['train_s']):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _mean(scores: Sequence[float]) -> str:
    """Return the mean over seeds, and their standard deviation where there are several."""
    spread = f" ({statistics.stdev(scores):.1f})" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.1f}{spread}"


def _interval(values: Sequence[float] | None) -> str:
    """Return a retention with its interval."""
    return "" if values is None else f"{values[0]:.1f}% ({values[1]:.1f} to {values[2]:.1f})"

"""Table of paired differences from what models are held against, with retention and a forest plot, task by task."""

from collections.abc import Sequence

from striate.artifacts import Difference
from striate.reporting.charts.bars import task_name
from striate.reporting.charts.drawing.svg import line, rect, title
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.model_names import model_class, model_name, place_of
from striate.reporting.html.tables import Cell, figures, table
from striate.wording import count, interval, percent, points, score, span, words

FOREST = 150.0
MOST_OPEN = 16


def overall(artifacts: RunArtifacts, label: str, kind: str) -> Difference | None:
    """Return the row over all tasks of one kind: one model against what it is held against."""
    rows = artifacts.retention.of(label) if artifacts.retention else ()
    matches = [row for row in rows if row.pack == "*" and row.task == kind]
    return matches[0] if matches else None


def draw_retention(rows: Sequence[Difference]) -> Html:
    """Return the paired differences: over all tasks first, then task by task, folded where there are many."""
    whole = [row for row in rows if row.pack == "*"]
    single = sorted((row for row in rows if row.pack != "*"), key=_order)
    tasks = len({(row.pack, row.task, row.metric) for row in single})
    summary = tag("summary", f"Every task ({tasks})")
    folded = tag("details", summary, _tables(single), open=len(single) <= MOST_OPEN) if single else None
    return tag("div", _tables(whole) if whole else None, folded)


def _order(row: Difference) -> tuple[bool, bool, str, str, str, int]:
    """Return where a row stands: visual, text, perplexity; tasks by name; models in the order of their making."""
    kinds = (row.metric == "perplexity", row.kind == "text")
    return (*kinds, row.pack, row.task, row.metric, place_of(row.label))


def _tables(rows: Sequence[Difference]) -> list[Html]:
    """Return the table of differences, and one of floors where they were measured: side by side they are too wide."""
    heads = ["task", "model", "against", "its floor", "above the floor"]
    floors = [[*_names(row), *_above_floor(row)] for row in rows if row.floor is not None]
    return [_table(rows), *([table(heads, floors)] if floors else [])]


def _table(rows: Sequence[Difference]) -> Html:
    shares = [row for row in rows if row.metric != "perplexity"]
    ends = [end for row in shares for end in (row.low, row.difference, row.high) if end is not None]
    widest = max(map(abs, ends), default=0.0)
    heads = ["task", "model", "against", "n", "its score", "score", "difference", "95% interval", "", "retention"]
    return table(heads, [_cells(row, widest) for row in rows])


def _above_floor(row: Difference) -> list[Cell]:
    """Return the floor, and what is kept above it, or why that can't be told."""
    kept = f"none: {row.no_above_floor}" if row.above_floor is None else _retained(row.kept_above_floor)
    return [*figures(score(row.floor or 0.0, row.metric)), Cell(kept, right=True, long=True)]


def _names(row: Difference) -> list[Cell]:
    """Return what a row is about: the task, the model, and what that is held against."""
    name = f"all {row.kind} tasks" if row.pack == "*" else task_name(row.pack, row.task)
    lower = " (lower is better)" if row.metric == "perplexity" else ""
    return [Cell(name + lower, head=True), Cell(model_name(row.label)), Cell(model_name(row.baseline))]


def _cells(row: Difference, widest: float) -> list[Cell]:
    return [
        *_names(row),
        *figures(count(row.n), score(row.baseline_score, row.metric), score(row.score, row.metric)),
        *figures(points(row.difference, row.metric), span(row.low, row.high, row.metric) or f"none: {row.no_interval}"),
        Cell(forest(row, widest) if row.metric != "perplexity" else None, wide_only=True),
        Cell(_retained(row), right=True),
    ]


def _retained(row: Difference) -> str:
    if row.retention is None:
        return "–"
    if row.retention_low is None or row.retention_high is None:
        return percent(row.retention / 100)
    return f"{percent(row.retention / 100)} ({row.retention_low:.1f} to {row.retention_high:.1f})"


def forest(row: Difference, widest: float) -> Html:
    """Return the difference as a point with its interval about zero; `widest` is the scale of the table."""
    scale = (FOREST / 2 - 6) / (widest or 1.0)
    ends = [row.difference if edge is None else edge for edge in (row.low, row.high)]
    low, mid, high = (FOREST / 2 + scale * value for value in (ends[0], row.difference, ends[1]))
    shapes = [
        line(FOREST / 2, 0, FOREST / 2, 18, class_="axis"),
        rect(low, 8, max(1.5, high - low), 2, class_=f"bar {model_class(row.label)}"),
        tag("circle", cx=mid, cy=9.0, r=3.6, class_=f"bar {model_class(row.label)}"),
        title(f"{points(row.difference)}, {interval(span(row.low, row.high), row.no_interval)}"),
    ]
    label = f"{words(row.task)}: {points(row.difference)}"
    return tag("svg", shapes, viewBox=f"0 0 {FOREST:.0f} 18", class_="forest", role="img", aria_label=label)

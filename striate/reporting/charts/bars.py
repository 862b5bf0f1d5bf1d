"""Bar chart of task scores by model, with 95% intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from striate.artifacts import TaskScore
from striate.reporting.charts.drawing.axes import nice_step, tick_label
from striate.reporting.charts.drawing.svg import WIDE, line, rect, text
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.model_names import model_class
from striate.wording import PERPLEXITY, amount, interval, score, score_span, shorten, words

BAR, PITCH, SPACE = 9.0, 12.0, 13.0
VALUE_ROOM = 52.0
MOST_NATS = 50.0


@dataclass(frozen=True)
class Row:
    """One task, with the score of each model that answered it."""

    pack: str
    task: str
    metric: str
    scores: dict[str, TaskScore]

    @property
    def n(self) -> int:
        """How many items the task has (the fewest, should models differ)."""
        return min(entry.n for entry in self.scores.values())


def rows_of(artifacts: RunArtifacts, kind: str, metric: str | None = None) -> list[Row]:
    """Return the tasks of one kind; `metric="perplexity"` returns those alone, None leaves them out."""
    rows: dict[tuple[str, str, str], dict[str, TaskScore]] = {}
    for label in artifacts.labels:
        for entry in artifacts.evals[label].tasks:
            if entry.kind == kind and (entry.metric == PERPLEXITY) == (metric == PERPLEXITY):
                rows.setdefault((entry.pack, entry.task, entry.metric), {})[label] = entry
    return [Row(*key, scores) for key, scores in sorted(rows.items())]


def task_name(pack: str, task: str) -> str:
    """Return the task as words, without a pack name that says the same."""
    return words(task) if pack in (task, "*") or words(pack).endswith(words(task)) else f"{words(pack)} · {words(task)}"


def draw_bars(rows: Sequence[Row], width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of the bars of `rows` at `width`; perplexity gets its own axis."""
    left = 236.0 if width >= WIDE else 0.0
    top, unit = (24.0 if left else 28.0), rows[0].metric == PERPLEXITY
    highest = max(_end(entry) for row in rows for entry in row.scores.values()) if unit else 1.0
    scale = (width - left - VALUE_ROOM) / (highest or 1.0)
    shapes: list[Html] = []
    y = top + 4
    for pack, group in groupby(rows, lambda row: row.pack):
        for row in group:
            shapes += _task(row, y, left, scale, width)
            y += _height(row, width)
        y += 6 if pack else 0
    return y, [*_grid(left, scale, top, y - 8, highest, unit), *shapes]


def _height(row: Row, width: float) -> float:
    bars = len(row.scores) * PITCH + SPACE
    return bars + 15 if width < WIDE else max(bars, 34.0)


def _grid(left: float, scale: float, top: float, bottom: float, highest: float, read: bool) -> list[Html]:
    step = nice_step(highest) if read else 0.25
    marks = [place * step for place in range(int(highest / step + 1e-9) + 1)]
    shapes = []
    for mark in marks:
        x = left + mark * scale
        shapes.append(line(x, top, x, bottom, class_="grid" if mark else "axis"))
        label = tick_label(mark) if read else f"{100 * mark:.0f}%"
        shapes.append(text(x, 16, label, class_="tick middle" if mark or left else "tick"))
    return shapes


def _task(row: Row, y: float, left: float, scale: float, width: float) -> list[Html]:
    name, counted = task_name(row.pack, row.task), f"n = {row.n}"
    full = f"{name}: {row.metric}, {amount(row.n, 'item')}"
    if left:
        heads = [
            text(left - 14, y + 11, shorten(name, 34), full, class_="head end"),
            text(left - 14, y + 25, f"{words(row.metric)}, {counted}", class_="note end"),
        ]
    else:
        heads = [
            text(0, y + 9, shorten(name, 38), full, class_="head"),
            text(width, y + 9, counted, class_="note end"),
        ]
    start = y + (15 if not left else 0)
    bars = [
        _bar(label, entry, start + place * PITCH, left, scale)
        for place, (label, entry) in enumerate(row.scores.items())
    ]
    return [*heads, *bars]


def _end(entry: TaskScore) -> float:
    """Return how far to the right the bar and its whisker reach."""
    return _length(entry, entry.score if entry.high is None else entry.high)


def _length(entry: TaskScore, value: float) -> float:
    """Return how long a bar of `value` is: that of a text that was read is its perplexity."""
    return math.exp(min(value, MOST_NATS)) if entry.metric == PERPLEXITY else value


def _bar(label: str, entry: TaskScore, y: float, left: float, scale: float) -> Html:
    high, middle = left + _end(entry) * scale, y + BAR / 2
    span = score_span(entry.low, entry.high, entry.metric)
    unread = f", {amount(entry.unparsed, 'answer')} not readable" if entry.unparsed else ""
    told = interval(span, entry.no_interval)
    tip = f"{label}: {score(entry.score, entry.metric)}, {told}, n = {entry.n}{unread}"
    ends = [left + _length(entry, edge) * scale for edge in (entry.low, entry.high) if edge is not None]
    whisker = [line(end, middle - 2.5, end, middle + 2.5) for end in ends]
    if ends:
        whisker.append(line(ends[0], middle, ends[-1], middle))
    value = score(entry.score, entry.metric).removesuffix("%")
    return tag(
        "g",
        rect(left, y, _length(entry, entry.score) * scale, BAR, tip, rx=1.5, class_=f"bar {model_class(label)}"),
        tag("g", whisker, class_="whisker"),
        text(max(high, left) + 6, middle + 3.5, value, class_=f"tiny {model_class(label)}"),
    )

"""Bar chart of retention: each model's share of the baseline by task, with a line at 100%."""

from collections.abc import Sequence
from itertools import groupby

from striate.artifacts import Difference
from striate.reporting.charts.bars import BAR, PITCH, task_name
from striate.reporting.charts.drawing.axis_break import lying_break
from striate.reporting.charts.drawing.svg import WIDE, line, rect, text
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.model_names import model_class, place_of
from striate.wording import interval, sample, shorten

LEFT, VALUE_ROOM, SPACE = 236.0, 58.0, 14.0
LEAST_REACH, MOST_REACH = 120.0, 250.0
Task = tuple[bool, bool, str, str, str]


def retained_rows(rows: Sequence[Difference]) -> list[Difference]:
    """Return the rows that have a retention: all visual tasks and all text tasks first, then task by task."""
    with_retention = [row for row in rows if row.retention is not None]
    return sorted(with_retention, key=lambda row: (*_task(row), place_of(row.label)))


def draw_retention_bars(rows: Sequence[Difference], width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of the bars of `rows`; bars beyond the axis end at its edge and say their value."""
    left = LEFT if width >= WIDE else 0.0
    reach = _reach(rows)
    scale = (width - left - VALUE_ROOM) / reach
    shapes: list[Html] = []
    y = 30.0
    for _, group in groupby(rows, _task):
        members = list(group)
        shapes += _row(members, y, left, scale, reach, width)
        y += _height(len(members), width) + (8 if members[0].pack == "*" else 0)
    return y, [*_grid(left, scale, reach, y - 8), *shapes]


def _task(row: Difference) -> Task:
    return row.pack != "*", row.kind == "text", row.pack, row.task, row.metric


def _reach(rows: Sequence[Difference]) -> float:
    highest = max(max(row.retention or 0.0, row.retention_high or 0.0) for row in rows)
    return min(MOST_REACH, max(LEAST_REACH, highest))


def _height(models: int, width: float) -> float:
    bars = models * PITCH + SPACE
    return bars + 15 if width < WIDE else max(bars, 34.0)


def _grid(left: float, scale: float, reach: float, bottom: float) -> list[Html]:
    step = 25.0 if reach <= 150 else 50.0
    shapes = []
    for place in range(int(reach / step + 1e-9) + 1):
        x = left + place * step * scale
        kind = "hundred" if place * step == 100 else "grid" if place else "axis"
        shapes.append(line(x, 24, x, bottom, class_=kind))
        shapes.append(text(x, 16, f"{place * step:.0f}%", class_="tick middle" if place or left else "tick"))
    return shapes


def _row(rows: Sequence[Difference], y: float, left: float, scale: float, reach: float, width: float) -> list[Html]:
    first = rows[0]
    name = f"all {first.kind} tasks" if first.pack == "*" else task_name(first.pack, first.task)
    kind = "head strong" if first.pack == "*" else "head"
    if left:
        heads = [
            text(left - 14, y + 11, shorten(name, 34), name, class_=f"{kind} end"),
            text(left - 14, y + 25, sample(first.n), class_="note end"),
        ]
    else:
        heads = [
            text(0, y + 9, shorten(name, 38), name, class_=kind),
            text(width, y + 9, sample(first.n), class_="note end"),
        ]
    start = y + (0 if left else 15)
    return heads + [_bar(row, start + place * PITCH, left, scale, reach) for place, row in enumerate(rows)]


def _bar(row: Difference, y: float, left: float, scale: float, reach: float) -> Html:
    value, kind = row.retention or 0.0, model_class(row.label)
    low, high = row.retention_low, row.retention_high
    span = "" if low is None or high is None else f"{low:.1f} to {high:.1f}"
    tip = f"{row.label} keeps {value:.1f}% of {row.baseline}, {interval(span, row.no_interval)}"
    whisker = None
    end = min(value, reach)
    if low is not None and high is not None:
        ends = [left + min(max(edge, 0.0), reach) * scale for edge in (low, high)]
        whisker = tag("g", line(ends[0], y + BAR / 2, ends[1], y + BAR / 2), class_="whisker")
        end = max(end, min(high, reach))
    return tag(
        "g",
        rect(left, y, min(value, reach) * scale, BAR, f"{tip}, {sample(row.n)}", rx=1.5, class_=f"bar {kind}"),
        whisker,
        lying_break(left + reach * scale - 10, y + BAR / 2, "this bar goes on") if value > reach else None,
        text(left + end * scale + 6, y + BAR / 2 + 3.5, f"{value:.1f}", class_=f"tiny {kind}"),
    )

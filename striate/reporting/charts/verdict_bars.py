"""The first chart of the page: every model on pictures and on text, and what it gained or lost against another."""

from collections.abc import Callable, Sequence

from striate.reporting.charts.drawing.svg import WIDE, line, rect, text, title
from striate.reporting.data.levels import Level, Panel
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.model_names import model_class
from striate.wording import PERPLEXITY, interval, plain_number, points, sample, shorten, span

GAP, TOP, PITCH, BAR = 48.0, 26.0, 42.0, 18.0
NAMES, VALUES = 72.0, 118.0
Place = Callable[[float], float]


def draw_verdict_bars(panels: Sequence[Panel], width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of the panels at `width`: side by side, or one below the other on a phone."""
    wide = width >= WIDE
    each = (width - GAP) / 2 if wide else width
    shapes: list[Html] = []
    heights = [TOP + PITCH * len(panel.levels) for panel in panels]
    for place, panel in enumerate(panels):
        left = place * (each + GAP) if wide else 0.0
        shapes += _panel(panel, left, 0.0 if wide else sum(heights[:place]) + 10 * place, each)
    return (max(heights) if wide else sum(heights) + 10 * (len(panels) - 1)), shapes


def _panel(panel: Panel, left: float, top: float, width: float) -> list[Html]:
    name = "perplexity of text, lower is better" if panel.perplexity else f"{panel.kind} score"
    ends = [end for one in panel.levels for end in (one.value, one.start, one.high, one.floor) if end is not None]
    scale = (width - NAMES - VALUES) / (max(ends) or 1.0)
    rows = {level.label: top + TOP + PITCH * place for place, level in enumerate(panel.levels)}

    def x(value: float) -> float:
        return left + NAMES + max(0.0, value) * scale

    shapes = [text(left, top + 12, name, class_="head strong")]
    for level in panel.levels:
        shapes += _row(level, panel, left, left + width - VALUES + 12, x, rows)
    bottom = top + TOP + PITCH * len(panel.levels) - (PITCH - BAR) + 4
    return [*shapes, line(x(0), top + TOP - 4, x(0), bottom, class_="axis")]


def _row(level: Level, panel: Panel, left: float, values: float, x: Place, rows: dict[str, float]) -> list[Html]:
    y, kind = rows[level.label], model_class(level.label)
    faded = " faded" if level.start is not None and level.value > level.start else ""
    bar = rect(x(0), y, x(level.value) - x(0), BAR, _tip(level, panel), rx=2, class_=f"bar {kind}{faded}")
    shapes = [text(left, y + 13, shorten(level.label, 11), level.label, class_="head"), bar]
    shapes.append(text(values, y + 13.5, _told(level.value, panel), class_="level"))
    if level.row and level.start is not None:
        shapes += _change(level, x, y, rows.get(level.row.baseline), kind)
        change = points(level.row.difference, level.row.metric).removesuffix(" points")
        shapes.append(text(values + 54, y + 13.5, change, _tip(level, panel), class_=f"level change {kind}"))
    if level.low is not None and level.high is not None:
        shapes.append(_whisker(level, x, y))
    if level.floor is not None:
        shapes.append(_floor(level, x(level.floor), y))
    return [*shapes, *_interval(level, x, y)]


def _change(level: Level, x: Place, y: float, other: float | None, kind: str) -> list[Html]:
    """Return what lies between the model's score and the other's, and a line down from the other's bar."""
    start, value = x(level.start or 0.0), x(level.value)
    low, high = sorted((start, value))
    # What a bar lacks of the other's is an outline; what it has on top is stronger than the rest.
    shade = "lost" if value < start else "won"
    shapes = [rect(low, y, high - low, BAR, class_=f"{shade} {kind}")] if high - low > 0.3 else []
    if other is not None:
        shapes.append(line(start, other + BAR, start, y + BAR + 3, class_="held"))
    return shapes


def _whisker(level: Level, x: Place, y: float) -> Html:
    low, high, middle = x(level.low or 0.0), x(level.high or 0.0), y + BAR / 2
    ends = [line(end, middle - 4, end, middle + 4) for end in (low, high)]
    return tag("g", line(low, middle, high, middle), ends, class_="whisker on-demand")


def _floor(level: Level, x: float, y: float) -> Html:
    """Return a thin mark across the bar, with a margin that sets it off from any colour."""
    lines = [line(x, y - 3, x, y + BAR + 3, class_=kind) for kind in ("margin", "mark")]
    return tag("g", title(floor_told(level)), lines, class_="floor")


def floor_told(level: Level) -> str:
    """Return what a model scores without its pictures, in words."""
    return f"{level.label} without its pictures (floor): {level.floor:.1f}%"


def _interval(level: Level, x: Place, y: float) -> list[Html]:
    row = level.row
    if not row:
        return []
    told = interval(span(row.low, row.high, row.metric), row.no_interval)
    return [text(x(0) + 3, y + BAR + 12, shorten(f"{told}, {sample(row.n)}", 46), told, class_="tiny on-demand")]


def _told(value: float, panel: Panel) -> str:
    return plain_number(value) if panel.perplexity else f"{value:.1f}%"


def _tip(level: Level, panel: Panel) -> str:
    what = PERPLEXITY if panel.perplexity else f"{panel.kind} score"
    told = f"{level.label}: {what} {_told(level.value, panel)}"
    row = level.row
    if row is None:
        return told
    reach = interval(span(row.low, row.high, row.metric), row.no_interval)
    return f"{told}, {points(row.difference, row.metric)} against {row.baseline}, {reach}, {sample(row.n)}"

"""Line chart of scores over the stack, with 95% intervals as bands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from striate.reporting.charts.drawing.axes import marks_between, tick_label
from striate.reporting.charts.drawing.axis_break import upright_break
from striate.reporting.charts.drawing.svg import line, rect, text, text_width
from striate.reporting.data.series import Series
from striate.reporting.html.markup import Html, number, tag

LEFT, RIGHT, HEIGHT = 58.0, 10.0, 250.0
WIDE_RANGE = 50.0
TINTS = 6


@dataclass(frozen=True)
class _Axes:
    """From layers and scores to places in the picture; logarithmic where positive scores span a wide range."""

    top: float
    width: float
    layers: int
    low: float
    high: float
    log: bool

    def x(self, layer: float) -> float:
        return LEFT + (layer + 0.5) * (self.width - LEFT - RIGHT) / self.layers

    def y(self, value: float) -> float:
        low, high, here = self.low, self.high, max(value, self.low)
        if self.log:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return self.top + HEIGHT * (1 - (here - low) / ((high - low) or 1.0))

    @property
    def bottom(self) -> float:
        return self.top + HEIGHT

    @property
    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
            return [mark for mark in marks if self.low <= mark <= self.high]
        return marks_between(self.low, self.high)


def draw_bands(series: Sequence[Series], width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of the lines of `series` at `width`."""
    legend, top = _legend(series, width)
    axes = _axes(series, width, top)
    shapes = [*legend, *_grid(axes)]
    for place, scored in enumerate(series):
        shapes += _band(scored, axes, place % TINTS)
    for place, scored in enumerate(series):
        shapes.append(_curve(scored, axes, place % TINTS))
    shapes += [_hover(series, axes, layer) for layer in range(axes.layers)]
    return axes.bottom + 38, shapes


def _axes(series: Sequence[Series], width: float, top: float) -> _Axes:
    low, high = min(scored.ends[0] for scored in series), max(scored.ends[1] for scored in series)
    log = low > 0 and high >= WIDE_RANGE * low
    if not log:
        low = 0.0 if 0 <= low <= 0.5 * high else low
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    return _Axes(top, width, len(series[0].values), low, high, log)


def _legend(series: Sequence[Series], width: float) -> tuple[list[Html], float]:
    shapes, x, y = [], LEFT, 10.0
    for place, scored in enumerate(series):
        room = 26 + text_width(scored.name, 10.5) + 14
        if x + room > width and x > LEFT:
            x, y = LEFT, y + 16
        shapes.append(line(x, y - 3.5, x + 20, y - 3.5, class_=f"series s{place % TINTS}"))
        shapes.append(text(x + 26, y, scored.name, class_="note"))
        x += room
    return shapes, y + 14


def _grid(axes: _Axes) -> list[Html]:
    shapes = []
    for value in axes.ticks:
        y = axes.y(value)
        shapes.append(line(LEFT, y, axes.width - RIGHT, y, class_="grid" if value else "axis"))
        shapes.append(text(LEFT - 8, y + 3.6, tick_label(float(f"{value:.6g}")), class_="tick end"))
    if axes.low > 0 and not axes.log:
        shapes += [line(LEFT, axes.top, LEFT, axes.bottom, class_="axis"), upright_break(LEFT, axes.bottom - 6)]
    room = (axes.width - LEFT - RIGHT) / axes.layers
    step = next(step for step in (1, 2, 5, 10, 20, 50) if room * step >= 18)
    shapes += [
        text(axes.x(layer), axes.bottom + 17, str(layer), class_="tick middle") for layer in range(0, axes.layers, step)
    ]
    return [*shapes, text((LEFT + axes.width) / 2, axes.bottom + 33, "layer, input to output", class_="note middle")]


def _band(series: Series, axes: _Axes, tint: int) -> list[Html]:
    if not series.low or not series.high:
        return []
    there = [f"{number(axes.x(layer))} {number(axes.y(value))}" for layer, value in enumerate(series.high)]
    back = [f"{number(axes.x(layer))} {number(axes.y(value))}" for layer, value in enumerate(series.low)]
    return [tag("path", d=f"M{'L'.join([*there, *reversed(back)])}Z", class_=f"band s{tint}")]


def _curve(series: Series, axes: _Axes, tint: int) -> Html:
    places = [f"{number(axes.x(layer))} {number(axes.y(value))}" for layer, value in enumerate(series.values)]
    return tag("path", d=f"M{'L'.join(places)}", class_=f"series s{tint}")


def _hover(series: Sequence[Series], axes: _Axes, layer: int) -> Html:
    room = (axes.width - LEFT - RIGHT) / axes.layers
    tip = "\n".join(scored.tip(layer) for scored in series)
    return rect(LEFT + layer * room, axes.top, room, HEIGHT, tip, class_="unseen")

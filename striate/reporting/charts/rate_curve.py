"""What learning rates reached: a dot a rate, rates a factor apart as far as the factor says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from striate.reporting.charts.drawing.axes import marks_between, tick_label
from striate.reporting.charts.drawing.axis_break import upright_break
from striate.reporting.charts.drawing.svg import line, text
from striate.reporting.html.markup import Html, number, tag

LEFT, RIGHT, TOP, HEIGHT = 58.0, 24.0, 14.0, 200.0
# A rate, what it reached, and whether it is the best one.
Reached = tuple[float, float, bool]


def draw_rates(reached: Sequence[Reached], width: float, unit: str = "") -> tuple[float, list[Html]]:
    """Return height and shapes of the picture at `width`; the upright axis spans what was measured."""
    left, right = (math.log(end) for end in (reached[0][0], reached[-1][0]))
    values = [value for _, value, _ in reached]
    room = 0.1 * (max(values) - min(values)) or 0.05 * max(abs(max(values)), 1.0)
    low, high = min(values) - room, max(values) + room

    def x(rate: float) -> float:
        return LEFT + 20 + (math.log(rate) - left) / ((right - left) or 1.0) * (width - LEFT - RIGHT - 40)

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - (value - low) / (high - low))

    shapes: list[Html] = []
    for mark in marks_between(low, high, 4):
        shapes.append(line(LEFT, y(mark), width - RIGHT, y(mark), class_="grid"))
        shapes.append(text(LEFT - 8, y(mark) + 3.6, f"{tick_label(mark)}{unit}", class_="tick end"))
    places = [f"{number(x(rate))} {number(y(value))}" for rate, value, _ in reached]
    shapes.append(tag("path", d="M" + "L".join(places), class_="series s1"))
    for rate, value, best in reached:
        tip = tag("title", f"{rate:g}: {value:.4g}{unit}")
        shapes.append(tag("circle", tip, cx=x(rate), cy=y(value), r=6.0 if best else 4.0, class_="bar s1"))
        shapes.append(text(x(rate), TOP + HEIGHT + 17, f"{rate:g}", class_="tick middle"))
    shapes.append(line(LEFT, TOP + HEIGHT, width - RIGHT, TOP + HEIGHT, class_="axis"))
    shapes.append(line(LEFT, TOP, LEFT, TOP + HEIGHT, class_="axis"))
    shapes += [upright_break(LEFT, TOP + HEIGHT - 6)] if low > 0 else []
    shapes.append(text((LEFT + width - RIGHT) / 2, TOP + HEIGHT + 34, "learning rate", class_="note middle"))
    return TOP + HEIGHT + 40, shapes

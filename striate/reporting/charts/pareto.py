"""What is kept against what is saved: a point a smaller model with its 95% interval, those of one kind joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from striate.reporting.charts.drawing.axes import marks_between, span, tick_label
from striate.reporting.charts.drawing.axis_break import lying_break, upright_break
from striate.reporting.charts.drawing.svg import WIDE, line, text
from striate.reporting.html.markup import Html, number, tag

LEFT, RIGHT, TOP, HEIGHT = 58.0, 24.0, 14.0, 290.0
Place = Callable[[float], float]


@dataclass(frozen=True)
class ParetoPoint:
    """One smaller model: `x` is what it saves, `kept` in % with `low` and `high` of its interval, `tip` in words."""

    name: str
    x: float
    kept: float
    low: float | None
    high: float | None
    tip: str

    @property
    def ends(self) -> tuple[float, float]:
        """How far down and up the point reaches."""
        return self.kept if self.low is None else self.low, self.kept if self.high is None else self.high


@dataclass(frozen=True)
class ParetoLine:
    """Models of one kind, by the number of layers; `shade` is the CSS class of their colour."""

    label: str
    shade: str
    points: tuple[ParetoPoint, ...]


def draw_pareto(lines: Sequence[ParetoLine], x_title: str, width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of the picture at `width`.

    The upright axis spans what was measured and 100%, and need not begin at 0.
    """
    points = [point for one in lines for point in one.points]
    left, right = span([point.x for point in points], 0.06)
    low, high = span([100.0, *(end for point in points for end in point.ends)], 0.08)

    def x(value: float) -> float:
        return LEFT + (value - left) / (right - left) * (width - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - (value - low) / (high - low))

    shapes: list[Html] = []
    for mark in marks_between(low, high, 5):
        kind = "hundred" if mark == 100 else "grid"
        shapes.append(line(LEFT, y(mark), width - RIGHT, y(mark), class_=kind))
        shapes.append(text(LEFT - 8, y(mark) + 3.6, f"{tick_label(mark)}%", class_="tick end"))
    for mark in marks_between(left, right, 8 if width >= WIDE else 4):
        shapes.append(text(x(mark), TOP + HEIGHT + 17, tick_label(mark), class_="tick middle"))
    shapes += [
        line(LEFT, TOP + HEIGHT, width - RIGHT, TOP + HEIGHT, class_="axis"),
        text((LEFT + width - RIGHT) / 2, TOP + HEIGHT + 34, x_title, class_="note middle"),
        line(LEFT, TOP, LEFT, TOP + HEIGHT, class_="axis"),
    ]
    shapes += [upright_break(LEFT, TOP + HEIGHT - 6)] if low > 0 else []
    shapes += [lying_break(LEFT + 8, TOP + HEIGHT)] if left > 0 else []
    for one in lines:
        shapes += _line(one, x, y)
    return TOP + HEIGHT + 40, shapes


def _line(one: ParetoLine, x: Place, y: Place) -> list[Html]:
    places = [f"{number(x(point.x))} {number(y(point.kept))}" for point in one.points]
    path = tag("path", d="M" + "L".join(places), class_=f"series {one.shade}") if len(places) > 1 else None
    return [*([path] if path else []), *(_point(point, one.shade, x, y) for point in one.points)]


def _point(point: ParetoPoint, shade: str, x: Place, y: Place) -> Html:
    low, high = point.ends
    whisker = tag("g", line(x(point.x), y(low), x(point.x), y(high)), class_="whisker") if high > low else None
    dot = tag("circle", tag("title", point.tip), cx=x(point.x), cy=y(point.kept), r=5.0, class_=f"bar {shade}")
    return tag("g", whisker, dot, text(x(point.x) + 7, y(point.kept) - 6, point.name, class_="tiny"))

"""Loss curve, with learning rates and gradient norm below it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from striate.reporting.charts.drawing.axes import nice_step, tick_label
from striate.reporting.charts.drawing.svg import line, rect, text
from striate.reporting.data.run_artifacts import LogStep
from striate.reporting.html.markup import Html, number, tag

LEFT, RIGHT, TOP = 46.0, 8.0, 12.0
MOST_POINTS = 240
Pick = Callable[[LogStep], float | None]


@dataclass(frozen=True)
class CurvePoint:
    """One step, or the mean of several neighbours."""

    first: int
    last: int
    value: float


@dataclass(frozen=True)
class _Panel:
    """One pair of axes: its position and its range."""

    top: float
    height: float
    width: float
    first_step: int
    last_step: int
    low: float
    high: float

    def x(self, step: float) -> float:
        return LEFT + (step - self.first_step) / max(1, self.last_step - self.first_step) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.top + self.height * (1 - (value - self.low) / ((self.high - self.low) or 1.0))


def points_of(log: Sequence[LogStep], pick: Pick, most: int = MOST_POINTS) -> list[CurvePoint]:
    """Return the finite values of `log`; neighbours are averaged where there are more than `most` steps."""
    finite = [(step.step, value) for step in log if (value := pick(step)) is not None and math.isfinite(value)]
    size = steps_a_point(finite, most)
    groups = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [CurvePoint(group[0][0], group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def steps_a_point(steps: Sequence[object], most: int = MOST_POINTS) -> int:
    """Return how many neighbouring steps make one point of the curve."""
    return max(1, math.ceil(len(steps) / most))


def smooth(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Return the centred running mean of `points` over a tenth of their number."""
    half = max(1, len(points) // 20)
    windows = [points[max(0, place - half) : place + half + 1] for place in range(len(points))]
    means = [sum(point.value for point in window) / len(window) for window in windows]
    return [CurvePoint(point.first, point.last, mean) for point, mean in zip(points, means, strict=True)]


def draw_loss(log: Sequence[LogStep], width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of the training curves at `width`."""
    losses = points_of(log, lambda step: step.loss)
    held_out = points_of(log, lambda step: (step.validation or {}).get("loss"))
    panel = _panel(log, [losses, held_out], TOP, 230.0, width)
    shapes: list[Html | None] = [
        *_axes(panel),
        _path(losses, panel, "loss faint"),
        _path(smooth(losses), panel, "loss"),
        _path(held_out, panel, "second"),
    ]
    shapes += _hovers(losses, panel, "loss")
    if held_out:
        shapes += [_dot(point, panel) for point in held_out]
        shapes += [
            text(width - RIGHT - 70, TOP - 1, "training", class_="note first end"),
            text(width - RIGHT, TOP - 1, "held out", class_="note second end"),
        ]
    bottom = panel.top + panel.height
    rates = points_of(log, lambda step: step.lr), points_of(log, lambda step: step.projector_lr)
    norms = points_of(log, lambda step: step.grad_norm)
    for name, series in (("learning rate", rates), ("gradient norm", (norms,))):
        if any(series):
            small = _panel(log, series, bottom + 40, 64.0, width)
            shapes += _small(small, name, series)
            bottom = small.top + small.height
    return bottom + 40, [shape for shape in [*shapes, *_steps(panel, bottom)] if shape]


def _panel(
    log: Sequence[LogStep], series: Sequence[Sequence[CurvePoint]], top: float, height: float, width: float
) -> _Panel:
    highest = max((point.value for points in series for point in points), default=1.0) or 1.0
    step = nice_step(highest)
    return _Panel(top, height, width, log[0].step, log[-1].step, 0.0, step * math.ceil(highest / step - 1e-9))


def _axes(panel: _Panel, ticks: int = 4) -> list[Html]:
    step = (panel.high - panel.low) if ticks == 1 else nice_step(panel.high, ticks)
    values = [step * place for place in range(round(panel.high / step) + 1)]
    shapes = []
    for value in values:
        y = panel.y(value)
        shapes.append(line(LEFT, y, panel.width - RIGHT, y, class_="grid" if value else "axis"))
        shapes.append(text(LEFT - 8, y + 3.6, tick_label(value), class_="tick end"))
    return shapes


def _path(points: Sequence[CurvePoint], panel: _Panel, kind: str) -> Html | None:
    if not points:
        return None
    places = [(panel.x((point.first + point.last) / 2), panel.y(point.value)) for point in points]
    if len(places) == 1:
        return tag("circle", cx=places[0][0], cy=places[0][1], r=3, class_=f"dot {kind}")
    return tag("path", d="M" + "L".join(f"{number(x)} {number(y)}" for x, y in places), class_=f"curve {kind}")


def _dot(point: CurvePoint, panel: _Panel) -> Html:
    """Return a measurement on held-out samples, with its tip."""
    x, y = panel.x((point.first + point.last) / 2), panel.y(point.value)
    return tag("circle", tag("title", _point_tip(point, "held-out loss")), cx=x, cy=y, r=3, class_="dot second")


def _hovers(points: Sequence[CurvePoint], panel: _Panel, name: str) -> list[Html]:
    if not points:
        return []
    width = (panel.width - LEFT - RIGHT) / len(points)
    return [
        rect(LEFT + place * width, panel.top, width, panel.height, _point_tip(point, name), class_="unseen")
        for place, point in enumerate(points)
    ]


def _point_tip(point: CurvePoint, name: str) -> str:
    if point.first == point.last:
        return f"step {point.first} · {name} {point.value:.5g}"
    return f"steps {point.first} to {point.last} · mean {name} {point.value:.5g}"


def _small(panel: _Panel, name: str, series: Sequence[Sequence[CurvePoint]]) -> list[Html]:
    heading = text(LEFT, panel.top - 9, name, class_="head")
    curves = [_path(points, panel, kind) for points, kind in zip(series, ("first", "second"), strict=False)]
    shapes = [heading, *_axes(panel, ticks=1), *[curve for curve in curves if curve]]
    if len(series) > 1 and series[1]:
        shapes += [
            text(panel.width - RIGHT, panel.top - 9, "projector", class_="note second end"),
            text(panel.width - RIGHT - 70, panel.top - 9, "region", class_="note first end"),
        ]
    return shapes + _hovers(series[0] or series[-1], panel, name)


def _steps(panel: _Panel, bottom: float) -> list[Html]:
    spread = panel.last_step - panel.first_step
    most = 8 if panel.width > 500 else 4
    step = max(1, round(nice_step(spread, most))) if spread else 1
    marks = range(-(-panel.first_step // step) * step, panel.last_step + 1, step)
    ticks = [text(panel.x(mark), bottom + 17, str(mark), class_="tick middle") for mark in marks]
    return [*ticks, text((LEFT + panel.width) / 2, bottom + 34, "optimizer step", class_="note middle")]

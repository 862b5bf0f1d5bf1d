"""Scatter plot of size or speed against quality: one point a model, with its 95% interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from striate.artifacts import EvalRecord, Kind
from striate.reporting.charts.bands import LEFT
from striate.reporting.charts.drawing.axes import marks_between, tick_label
from striate.reporting.charts.drawing.axis_break import lying_break, upright_break
from striate.reporting.charts.drawing.svg import WIDE, line, text
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.model_names import model_class
from striate.wording import interval

HEIGHT, TOP, RIGHT = 250.0, 14.0, 20.0


@dataclass(frozen=True)
class ModelPoint:
    """One model: its cost, its mean score with a 95% interval, in percent; `low` and `high` are None without one."""

    label: str
    cost: float
    score: float
    low: float | None
    high: float | None

    @property
    def ends(self) -> tuple[float, float]:
        """How far down and up the point reaches."""
        return self.score if self.low is None else self.low, self.score if self.high is None else self.high


@dataclass(frozen=True)
class Cost:
    """The quantity on the horizontal axis."""

    name: str
    title: str
    of: Callable[[EvalRecord], float]


COSTS = (
    Cost("parameters", "parameters, in millions", lambda record: record.parameters / 1e6),
    Cost("size", "weights on disk, in GiB", lambda record: record.size_bytes / 2**30),
    Cost("speed", "test items a second", lambda record: items_per_second(record)),
)


def items_per_second(record: EvalRecord) -> float:
    """Return how many test items a second the model answered; 0 where that was not measured."""
    if record.asking:
        return record.asking.items_per_second
    return sum(task.n for task in record.tasks) / record.seconds if record.seconds else 0.0


def points_of(records: Sequence[EvalRecord], kind: Kind, cost: Cost) -> list[ModelPoint]:
    """Return a point for each model that has tasks of `kind` and a known cost.

    The score is the unweighted mean of the tasks' scores, without perplexity; its interval is the record's.
    """
    points = []
    for record in records:
        tasks = [task for task in record.tasks if task.kind == kind and task.metric != "perplexity"]
        if not tasks or cost.of(record) <= 0:
            continue
        mean = sum(task.score for task in tasks) / len(tasks)
        low, high = (None if end is None else 100 * end for end in record.intervals.get(kind, (None, None)))
        points.append(ModelPoint(record.label, cost.of(record), 100 * mean, low, high))
    return points


def draw_scatter(points: Sequence[ModelPoint], kind: str, cost: Cost, width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of the scatter at `width`."""
    left, right = _span([point.cost for point in points])
    low, high = _span([edge for point in points for edge in point.ends])

    def x(value: float) -> float:
        return LEFT + (value - left) / (right - left) * (width - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - (value - low) / (high - low))

    shapes: list[Html] = []
    for mark in marks_between(low, high):
        shapes.append(line(LEFT, y(mark), width - RIGHT, y(mark), class_="grid"))
        shapes.append(text(LEFT - 8, y(mark) + 3.6, f"{tick_label(mark)}%", class_="tick end"))
    for mark in marks_between(left, right, 6 if width >= WIDE else 3):
        shapes.append(text(x(mark), TOP + HEIGHT + 17, tick_label(mark), class_="tick middle"))
    shapes += [
        line(LEFT, TOP + HEIGHT, width - RIGHT, TOP + HEIGHT, class_="axis"),
        text((LEFT + width) / 2, TOP + HEIGHT + 34, cost.title, class_="note middle"),
        text(LEFT + 4, TOP + 4, f"{kind} score", class_="note"),
        line(LEFT, TOP, LEFT, TOP + HEIGHT, class_="axis"),
    ]
    shapes += [upright_break(LEFT, TOP + HEIGHT - 6)] if low else []
    shapes += [lying_break(LEFT + 8, TOP + HEIGHT)] if left else []
    return TOP + HEIGHT + 40, [*shapes, *(_point(point, cost, x(point.cost), y, width) for point in points)]


def _point(point: ModelPoint, cost: Cost, x: float, y: Callable[[float], float], width: float) -> Html:
    tip = (
        f"{point.label}: {point.score:.1f}%, {interval(_reach(point), 'too few pictures, or an older run')}; "
        f"{tick_label(float(f'{point.cost:.4g}'))} {cost.title}"
    )
    near_edge = x > width - 90
    kind = f"head {model_class(point.label)}{' end' if near_edge else ''}"
    name = text(x + (-10 if near_edge else 10), y(point.score) - 7, point.label, class_=kind)
    low, high = point.ends
    whisker = tag("g", line(x, y(low), x, y(high)), class_="whisker") if _reach(point) else None
    dot = tag("circle", tag("title", tip), cx=x, cy=y(point.score), r=6.0, class_=f"bar {model_class(point.label)}")
    return tag("g", whisker, dot, name)


def _reach(point: ModelPoint) -> str:
    return "" if point.low is None or point.high is None else f"{point.low:.1f} to {point.high:.1f}"


def _span(values: Sequence[float]) -> tuple[float, float]:
    room = 0.14 * (max(values) - min(values)) or 0.2 * (max(values) or 1.0)
    return max(0.0, min(values) - room), max(values) + room


def caption(cost: Cost) -> str:
    """Return what the picture shows, in words."""
    better = "right" if cost.name == "speed" else "left"
    return (
        f"Unweighted mean of the tasks' scores; better is up and to the {better}. "
        "Whiskers are 95% intervals over pictures, all tasks together."
    )

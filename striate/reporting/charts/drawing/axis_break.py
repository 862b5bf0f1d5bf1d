"""The mark of an axis that does not begin at 0, or of a bar that goes on."""

from striate.reporting.charts.drawing.svg import title
from striate.reporting.html.markup import Html, number, tag

TIP = "this axis does not begin at 0"
REACH, STEP = 4.5, 3.0


def upright_break(x: float, y: float, tip: str = TIP) -> Html:
    """Return two slanted strokes across an upright axis at height `y`."""
    return _strokes([(x - REACH, y - at + 2, x + REACH, y - at - 2) for at in (0.0, STEP)], tip)


def lying_break(x: float, y: float, tip: str = TIP) -> Html:
    """Return two slanted strokes across a horizontal axis, or a bar, at `x`."""
    return _strokes([(x + at - 2, y + REACH, x + at + 2, y - REACH) for at in (0.0, STEP)], tip)


def _strokes(ends: list[tuple[float, float, float, float]], tip: str) -> Html:
    path = "".join(f"M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}" for x1, y1, x2, y2 in ends)
    return tag("path", title(tip), d=path, class_="break")

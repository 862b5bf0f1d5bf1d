"""The picture of the time to quality: the share of held-out answers that are right, against seconds, as an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from picture_frame import LEFT, RIGHT, Frame, picture, spread

from striate.reporting.charts.drawing.svg import line, text, title
from striate.reporting.html.markup import Html, tag

_SHADES = {"hf": "s2", "liger": "s3", "all": "s4", "uniform:25%": "s1"}
_NAMES = {
    "hf": "transformers' Trainer, all layers",
    "liger": "the same with Liger",
    "all": "striate, all layers",
    "uniform:25%": "striate, a quarter",
}


def draw(lines: Sequence[dict[str, Any]], score: str, target: float | None) -> str:
    """Return the picture of the arms' points.

    Args:
        lines: of the arms that ended, each with its points.
        score: the key of what the points are told by, a share.
        target: the score that all are held against, drawn across; None for none.
    """
    arms = [(one["name"], [(point["at_s"], 100 * point[score]) for point in one["points"]]) for one in lines]
    spots = [spot for _, points in arms for spot in points]
    frame = Frame.around([0.0, *(second for second, _ in spots)], [share for _, share in spots])
    shapes = frame.axes("seconds of steps", "held-out answers that are right", " s")
    if target is not None:
        height = frame.y(100 * target)
        shapes.append(line(LEFT, height, RIGHT, height, class_="hundred"))
    arms.sort(key=lambda arm: frame.y(arm[1][-1][1]))
    for (name, points), place in zip(arms, spread([frame.y(points[-1][1]) for _, points in arms]), strict=True):
        shapes += _drawn(name, points, place, frame)
    return picture(shapes, "held-out answers that are right against seconds of steps, a line an arm")


def _drawn(name: str, points: Sequence[tuple[float, float]], place: float, frame: Frame) -> list[Html]:
    """Return an arm's line and points, and its name at the right with a line to it."""
    shade, called = _SHADES.get(name, "s2"), _NAMES.get(name, name)
    places = [(frame.x(second), frame.y(share)) for second, share in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [
        tag("circle", title(f"{called}: {share:.1f}% after {second:.1f} s"), cx=x, cy=y, r=3.0, class_=shade)
        for (x, y), (second, share) in zip(places, points, strict=True)
    ]
    return [
        line(*places[-1], RIGHT + 14, place, class_="lead"),
        tag("polyline", points=path, class_=f"curve {shade}"),
        *dots,
        text(RIGHT + 18, place + 4, f"{called}  {points[-1][1]:.1f}", class_=shade),
    ]

"""The picture of the region study: what each region keeps of the visual and of the text score, as an SVG file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from picture_frame import RIGHT, Frame, picture, spread
from study_arms import ALL

from striate.reporting.charts.drawing.svg import line, text, title
from striate.reporting.html.markup import Html, tag

_COLOURS = {"uniform": "s1", "scores": "s3", "spaced": "s3", "random": "s4"}


@dataclass(frozen=True)
class Spot:
    """One region: what it keeps of text (`x`) and of pictures (`y`), in %, each with the ends of its interval."""

    name: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]

    @property
    def shade(self) -> str:
        """The class of its colour, one for regions of a kind."""
        return _COLOURS.get(self.name.partition(":")[0], "s2")


def draw(told: dict[str, Any]) -> str:
    """Return the picture; regions of which nothing can be told on either side are not in it."""
    spots = [spot for arm in told["arms"] if arm["arm"] != ALL and (spot := _spot(arm))]
    frame = Frame.around(
        [100.0, *(end for spot in spots for end in spot.x)],
        [100.0, *(end for spot in spots for end in spot.y)],
    )
    across, upright = f"text kept of {ALL}, with 95% intervals", f"visual score kept of {ALL}"
    shapes = frame.axes(across, upright, "%", whole=100)
    spots.sort(key=lambda spot: frame.y(spot.y[0]))
    for spot, place in zip(spots, spread([frame.y(spot.y[0]) for spot in spots]), strict=True):
        shapes += _drawn(spot, place, frame)
    return picture(shapes, "visual score kept against text kept, a point a region")


def _spot(arm: dict[str, Any]) -> Spot | None:
    sides = [arm["text_kept"], arm["visual_kept"]]
    if any(not side or side["kept"] is None for side in sides):
        return None
    ends = [
        tuple(side["kept"] if side[end] is None else side[end] for end in ("kept", "low", "high")) for side in sides
    ]
    return Spot(arm["arm"], *ends)


def _drawn(spot: Spot, place: float, frame: Frame) -> list[Html]:
    """Return a region's point, its two intervals, and its name at the right with a line to it."""
    x, y = frame.x, frame.y
    middle, height = x(spot.x[0]), y(spot.y[0])
    tip = f"{spot.name}: visual {_told(spot.y)}, text {_told(spot.x)}"
    return [
        line(middle, height, RIGHT + 14, place, class_="lead"),
        line(x(spot.x[1]), height, x(spot.x[2]), height, class_=f"whisker {spot.shade}"),
        line(middle, y(spot.y[1]), middle, y(spot.y[2]), class_=f"whisker {spot.shade}"),
        tag("circle", title(tip), cx=middle, cy=height, r=5.0, class_=spot.shade),
        text(RIGHT + 18, place + 4, f"{spot.name}  {spot.y[0]:.1f}", tip, class_=spot.shade),
    ]


def _told(ends: tuple[float, float, float]) -> str:
    return f"{ends[0]:.1f}% ({ends[1]:.1f} to {ends[2]:.1f})"

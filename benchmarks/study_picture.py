"""The picture of the region study: what each region keeps of the visual and of the text score, as an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from study_arms import ALL

from striate.reporting.charts.drawing.axes import marks_between, tick_label
from striate.reporting.charts.drawing.colours import DARK, LIGHT
from striate.reporting.charts.drawing.svg import line, text, title
from striate.reporting.html.markup import Html, tag

WIDTH, HEIGHT = 860.0, 520.0
LEFT, TOP, RIGHT, BOTTOM = 64.0, 20.0, 540.0, 460.0
_LINE = 16.0
_COLOURS = {"uniform": "s1", "scores": "s3", "spaced": "s3", "random": "s4"}
_ROOM = 0.06


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
    sides = _span([100.0, *(end for spot in spots for end in spot.x)])
    heights = _span([100.0, *(end for spot in spots for end in spot.y)])

    def x(value: float) -> float:
        return LEFT + (value - sides[0]) / (sides[1] - sides[0]) * (RIGHT - LEFT)

    def y(value: float) -> float:
        return BOTTOM - (value - heights[0]) / (heights[1] - heights[0]) * (BOTTOM - TOP)

    shapes: list[Html] = []
    for mark in marks_between(*heights, 6):
        shapes.append(line(LEFT, y(mark), RIGHT, y(mark), class_="hundred" if mark == 100 else "grid"))
        shapes.append(text(LEFT - 8, y(mark) + 4, f"{tick_label(mark)}%", class_="end"))
    for mark in marks_between(*sides, 6):
        shapes.append(line(x(mark), TOP, x(mark), BOTTOM, class_="hundred" if mark == 100 else "grid"))
        shapes.append(text(x(mark), BOTTOM + 18, f"{tick_label(mark)}%", class_="middle"))
    shapes.append(text((LEFT + RIGHT) / 2, BOTTOM + 42, f"text kept of {ALL}, with 95% intervals", class_="middle"))
    shapes.append(text(LEFT, TOP - 7, f"visual score kept of {ALL}"))
    for spot, place in zip(*_places(spots, y), strict=True):
        shapes += _drawn(spot, place, x, y)
    label = "visual score kept against text kept, a point a region"
    own = tag("style", Html(_style()))
    box = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}"
    return tag("svg", own, shapes, xmlns="http://www.w3.org/2000/svg", viewBox=box, role="img", aria_label=label) + "\n"


def _spot(arm: dict[str, Any]) -> Spot | None:
    sides = [arm["text_kept"], arm["visual_kept"]]
    if any(not side or side["kept"] is None for side in sides):
        return None
    ends = [
        tuple(side["kept"] if side[end] is None else side[end] for end in ("kept", "low", "high")) for side in sides
    ]
    return Spot(arm["arm"], *ends)


def _places(spots: Sequence[Spot], y: Any) -> tuple[list[Spot], list[float]]:
    """Return the regions from the top down, and the height of each one's name, which never touch each other."""
    order = sorted(spots, key=lambda spot: y(spot.y[0]))
    places: list[float] = []
    for spot in order:
        places.append(max(y(spot.y[0]), places[-1] + _LINE) if places else y(spot.y[0]))
    # What would run out below is pushed up again.
    for at in reversed(range(len(places))):
        below = places[at + 1] - _LINE if at + 1 < len(places) else BOTTOM
        places[at] = min(places[at], below)
    return order, places


def _drawn(spot: Spot, place: float, x: Any, y: Any) -> list[Html]:
    """Return a region's point, its two intervals, and its name at the right with a line to it."""
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


def _span(values: Sequence[float]) -> tuple[float, float]:
    room = _ROOM * (max(values) - min(values)) or 1.0
    return min(values) - room, max(values) + room


def _style() -> str:
    """Return the style, which follows the colour scheme of the page or program that shows the picture."""
    names = ("paper", "ink", "muted", "line", "s1", "s2", "s3", "s4")
    schemes = [";".join(f"--{name}:{colours[name]}" for name in names) for colours in (LIGHT, DARK)]
    shades = "".join(f".{name}{{fill:var(--{name});stroke:var(--{name})}}" for name in names if name[0] == "s")
    return (
        f"svg{{{schemes[0]};background:var(--paper);font:13px sans-serif}}"
        f"@media(prefers-color-scheme:dark){{svg{{{schemes[1]}}}}}"
        f"{shades}text{{fill:var(--muted);stroke:none!important}}"
        ".end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:var(--line)}.hundred{stroke:var(--ink)}"
        ".lead{stroke:var(--line)}.whisker{stroke-width:1.4;opacity:.6}"
    )

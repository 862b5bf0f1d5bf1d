"""What the study's pictures share: an SVG file in the reader's colours, axes with marks, names at the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from striate.reporting.charts.drawing.axes import marks_between, span, tick_label
from striate.reporting.charts.drawing.colours import DARK, LIGHT
from striate.reporting.charts.drawing.svg import line, text
from striate.reporting.html.markup import Html, tag

WIDTH, HEIGHT = 860.0, 520.0
LEFT, TOP, RIGHT, BOTTOM = 64.0, 20.0, 540.0, 460.0
_LINE = 16.0
_ROOM = 0.06


@dataclass(frozen=True)
class Frame:
    """Axes over what was measured.

    Attributes:
        across: the ends of the axis from left to right.
        upright: of the one from the bottom to the top.
    """

    across: tuple[float, float]
    upright: tuple[float, float]

    @classmethod
    def around(cls, across: Sequence[float], upright: Sequence[float]) -> Frame:
        """Return axes with all these values and some room."""
        return cls(span(across, _ROOM), span(upright, _ROOM))

    def x(self, value: float) -> float:
        """Return where a value lies from left to right."""
        return LEFT + (value - self.across[0]) / (self.across[1] - self.across[0]) * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        """Return where a value lies from top to bottom."""
        return BOTTOM - (value - self.upright[0]) / (self.upright[1] - self.upright[0]) * (BOTTOM - TOP)

    def axes(self, across: str, upright: str, unit: str, whole: float | None = None) -> list[Html]:
        """Return lines and marks of both axes, `unit` behind those from left to right, and what each shows.

        Args:
            across: what the axis from left to right shows.
            upright: what the other one shows, in %.
            unit: of the first.
            whole: a value that is drawn more strongly.
        """
        shapes: list[Html] = []
        for mark in marks_between(*self.upright, 6):
            shapes.append(line(LEFT, self.y(mark), RIGHT, self.y(mark), class_=_grid(mark, whole)))
            shapes.append(text(LEFT - 8, self.y(mark) + 4, f"{tick_label(mark)}%", class_="end"))
        for mark in marks_between(*self.across, 6):
            shapes.append(line(self.x(mark), TOP, self.x(mark), BOTTOM, class_=_grid(mark, whole)))
            shapes.append(text(self.x(mark), BOTTOM + 18, f"{tick_label(mark)}{unit}", class_="middle"))
        shapes.append(text((LEFT + RIGHT) / 2, BOTTOM + 42, across, class_="middle"))
        shapes.append(text(LEFT, TOP - 7, upright))
        return shapes


def spread(heights: Sequence[float]) -> list[float]:
    """Return the heights of names for points that lie at `heights`, from the top down, so that no two touch."""
    places: list[float] = []
    for height in heights:
        places.append(max(height, places[-1] + _LINE) if places else height)
    # What would run out below is pushed up again.
    for at in reversed(range(len(places))):
        below = places[at + 1] - _LINE if at + 1 < len(places) else BOTTOM
        places[at] = min(places[at], below)
    return places


def picture(shapes: Sequence[Html], label: str) -> str:
    """Return the SVG file; `label` says in words what it shows."""
    own = tag("style", Html(_style()))
    box = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}"
    return tag("svg", own, shapes, xmlns="http://www.w3.org/2000/svg", viewBox=box, role="img", aria_label=label) + "\n"


def _grid(mark: float, whole: float | None) -> str:
    return "hundred" if mark == whole else "grid"


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
        ".curve{fill:none!important;stroke-width:1.6}"
    )

"""Heat maps: a grid of coloured cells with headings, values, scales and marks, drawn as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from striate.reporting.charts.drawing.colours import step_of
from striate.reporting.charts.drawing.svg import WIDE, line, ramp, rect, text, text_width
from striate.reporting.html.markup import Html, tag
from striate.wording import shorten

SMALL, TINY_SIZE = 10.5, 9.5
GAP = 9.0
DARK_FROM, DARK_FROM_TWO_SIDED = 0.55, 0.72


@dataclass(frozen=True)
class Spot:
    """One cell: its place on the colour ramp (0 to 1; -1 to 1 on a two-sided one), hover text, value, marks."""

    share: float
    tip: str
    label: str = ""
    marked: bool = False
    dotted: bool = False
    two_sided: bool = False

    @property
    def kind(self) -> str:
        """The class of the cell's colour."""
        return f"d{step_of((self.share + 1) / 2)}" if self.two_sided else f"h{step_of(self.share)}"

    @property
    def strong(self) -> bool:
        """Whether a label on the cell needs the colour of the paper to be read."""
        return abs(self.share) > DARK_FROM_TWO_SIDED if self.two_sided else self.share > DARK_FROM


@dataclass(frozen=True)
class Lane:
    """Marks below one row, in units of columns: an interval with a dot, and a second interval as a bracket."""

    dot: float
    low: float
    high: float
    bracket: tuple[float, float]
    tip: str


@dataclass(frozen=True)
class Heat:
    """What a heat map shows.

    `gaps` are columns with room before them, `feet` stand below columns (low, high), `ends` beside the colour ramp.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    spots: Sequence[Sequence[Spot | None]]
    gaps: frozenset[int] = frozenset()
    feet: Sequence[tuple[str, str]] = ()
    lanes: Sequence[Lane | None] = ()
    widest: float = 90.0
    tallest: float = 21.0
    lowest: float = 8.5
    row_title: str = ""
    column_title: str = ""
    ends: tuple[str, str] | None = None
    two_sided: bool = False


@dataclass(frozen=True)
class _Frame:
    """Positions of a heat map's cells."""

    left: float
    top: float
    cell: float
    pitch: float
    lane: float
    lefts: tuple[float, ...]
    upright: bool = False
    rows: int = 0
    width: float = 0.0
    marks: tuple[int, ...] = field(default=())

    def y(self, row: int) -> float:
        return self.top + row * (self.pitch + self.lane)

    def x(self, column: float) -> float:
        """Return the middle of a column, also between two."""
        low = min(int(column), len(self.lefts) - 1)
        high = min(low + 1, len(self.lefts) - 1)
        return self.lefts[low] + (column - low) * (self.lefts[high] - self.lefts[low]) + self.cell / 2

    @property
    def bottom(self) -> float:
        return self.y(self.rows)


def draw_heat(heat: Heat, width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of the heat map at `width`, with its colour ramp where it has words for the ends."""
    frame = _frame(heat, width)
    shapes = [*_rows(heat, frame), *_columns(heat, frame)]
    for row, spots in enumerate(heat.spots):
        shapes += [_spot(spot, frame, row, column) for column, spot in enumerate(spots) if spot]
    for row, lane in enumerate(heat.lanes):
        shapes += _lane(lane, frame, row) if lane else []
    feet, height = _feet(heat, frame)
    shapes += feet
    if not heat.ends:
        return height, shapes
    return height + 34, [*shapes, *_ramp(height + 8, min(300.0, width), heat.ends, heat.two_sided)]


def _frame(heat: Heat, width: float) -> _Frame:
    longest = max(text_width(name, SMALL) for name in (*heat.rows, heat.row_title, "highest" if heat.feet else ""))
    left = min(longest + 12, width * (0.24 if width >= WIDE else 0.3))
    gap = GAP if width >= WIDE else 5.0
    cell = min(heat.widest, (width - left - gap * len(heat.gaps)) / len(heat.columns))
    pitch = min(heat.tallest, max(heat.lowest, 680 / len(heat.rows)))
    numeric = all(name.isdecimal() for name in heat.columns)
    upright = not numeric and any(text_width(name, SMALL) > cell - 2 for name in heat.columns)
    head = max(text_width(shorten(name, 30), SMALL) for name in heat.columns) + 14 if upright else 22.0
    lefts = tuple(left + column * cell + gap * sum(mark <= column for mark in heat.gaps) for column in _range(heat))
    step = next(step for step in (1, 2, 5, 10, 20) if not numeric or cell * step >= text_width("00", SMALL) + 4)
    top = head + (13 if heat.column_title else 0)
    lane = 12.0 if any(heat.lanes) else 0.0
    return _Frame(left, top, cell, pitch, lane, lefts, upright, len(heat.rows), width, tuple(_range(heat)[::step]))


def _range(heat: Heat) -> range:
    return range(len(heat.columns))


def _rows(heat: Heat, frame: _Frame) -> list[Html]:
    step = 1 if frame.pitch + frame.lane >= 12 else 5
    limit = max(4, int((frame.left - 10) / (0.6 * SMALL)))
    kind = "tick end" if all(name.isdecimal() for name in heat.rows) else "head end"
    shapes = [
        text(frame.left - 8, frame.y(row) + frame.pitch / 2 + 3.6, shorten(name, limit), name, class_=kind)
        for row, name in enumerate(heat.rows)
        if step == 1 or (name.isdecimal() and int(name) % step == 0)
    ]
    if heat.row_title:
        shapes.append(text(frame.left - 8, frame.top - 7, heat.row_title, class_="tiny end"))
    return shapes


def _columns(heat: Heat, frame: _Frame) -> list[Html]:
    y = frame.top - 7
    shapes = [_heading(heat.columns[place], frame.x(place), y, frame.upright) for place in frame.marks]
    if heat.column_title:
        shapes.append(text(frame.left, 10, heat.column_title, class_="tiny"))
    return shapes


def _heading(name: str, x: float, y: float, upright: bool) -> Html:
    if not upright:
        return text(x, y, name, class_="tick middle")
    return text(x + 3.5, y, shorten(name, 30), name, class_="head", transform=f"rotate(-90 {x + 3.5:.1f} {y:.1f})")


def _spot(spot: Spot, frame: _Frame, row: int, column: int) -> Html:
    left, top = frame.lefts[column], frame.y(row)
    seam = 1.0 if frame.cell > 4 else 0.0
    kind = f"{spot.kind} marked" if spot.marked else spot.kind
    shape = rect(left, top, frame.cell - seam, frame.pitch - seam, spot.tip, class_=kind)
    if spot.dotted:
        x, y = left + (frame.cell - seam) / 2, top + (frame.pitch - seam) / 2
        dot = "dot strong" if spot.strong else "dot plain"
        return tag("g", shape, tag("circle", cx=x, cy=y, r=min(2.0, frame.cell / 4), class_=dot))
    if not spot.label or frame.pitch < 12 or text_width(spot.label, TINY_SIZE) > frame.cell - 3:
        return shape
    colour = "value strong" if spot.strong else "value"
    label = text(left + (frame.cell - seam) / 2, top + frame.pitch / 2 + 2.8, spot.label, class_=colour)
    return tag("g", shape, label)


def _lane(lane: Lane, frame: _Frame, row: int) -> list[Html]:
    y = frame.y(row) + frame.pitch + 3
    first, last = (frame.x(place) for place in lane.bracket)
    half = frame.cell / 2 - 0.5
    tip = rect(frame.left, y - 3, frame.width - frame.left, frame.lane, lane.tip, class_="unseen")
    return [
        line(first - half, y - 2, last + half, y - 2, class_="bracket"),
        line(frame.x(lane.low), y + 3, frame.x(lane.high), y + 3, class_="reach"),
        tag("circle", cx=frame.x(lane.dot), cy=y + 3, r=2.8, class_="dot centre"),
        tip,
    ]


def _feet(heat: Heat, frame: _Frame) -> tuple[list[Html], float]:
    fits = all(text_width(end, TINY_SIZE) <= frame.cell - 2 for ends in heat.feet for end in ends)
    if not heat.feet or not fits:
        return [], frame.bottom + 6
    shapes = []
    for column, (low, high) in enumerate(heat.feet):
        x = frame.x(column)
        shapes.append(text(x, frame.bottom + 13, high, class_="tiny middle"))
        shapes.append(text(x, frame.bottom + 25, low, class_="tiny middle"))
    shapes.append(text(frame.left - 8, frame.bottom + 13, "highest", class_="tiny end"))
    shapes.append(text(frame.left - 8, frame.bottom + 25, "lowest", class_="tiny end"))
    return shapes, frame.bottom + 32


def _ramp(y: float, width: float, ends: tuple[str, str], two_sided: bool) -> list[Html]:
    low, high = text(0, y + 18, ends[0], class_="tiny"), text(width, y + 18, ends[1], class_="tiny end")
    return [*ramp(0, y, width, 6, "d" if two_sided else "h"), low, high]

"""Layout of the stack chart: bars, columns of scores, headings; and the scales of the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from striate.artifacts import LayerScores
from striate.reporting.charts.drawing.svg import WIDE, text_width
from striate.wording import words

GAP = 18.0
MARGIN = 30.0
SMALL = 10.5
NARROWEST = 60.0
MOST_COLUMNS = 14


@dataclass(frozen=True)
class HeatColumn:
    """One column of layer scores: a scorer's values or one of its parts, on the scorer's common scale."""

    scorer: str
    part: str
    values: tuple[float, ...]
    scale: Scale
    entry: LayerScores

    def tip(self, layer: int) -> str:
        """Return the hover text of one cell."""
        value = self.values[layer]
        if self.part:
            tokens = self.entry.tokens.get(self.part)
            counted, kind = (f", {tokens} tokens", " tokens") if tokens else ("", "")
            return f"layer {layer} · {words(self.scorer)}, {self.part}{kind}: {value:.5g}{counted}"
        low, high = self.entry.low, self.entry.high
        interval = f", 95% interval {low[layer]:.5g} to {high[layer]:.5g}" if low and high else ""
        return f"layer {layer} · {words(self.scorer)}: {value:.5g}{interval}, {self.entry.samples} samples"


@dataclass(frozen=True)
class Scale:
    """From a score to its place on the colour ramp; logarithmic where the scores span a factor of 5 or more."""

    low: float
    high: float
    log: bool

    def share(self, value: float) -> float:
        """Return the place of `value` between the lowest (0) and the highest (1)."""
        if self.high <= self.low:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def scale_of(values: Sequence[float]) -> Scale:
    """Return the scale that spans `values`."""
    low, high = min(values), max(values)
    return Scale(low, high, low > 0 and high >= 5 * low)


def columns_of(scores: Sequence[LayerScores]) -> list[HeatColumn]:
    """Return one column a scorer and one a part, in order; parts are left out where there are very many."""
    if sum(1 + len(entry.parts) for entry in scores) > MOST_COLUMNS:
        scores = [entry.model_copy(update={"parts": {}}) for entry in scores]
    columns: list[HeatColumn] = []
    for entry in scores:
        scale = scale_of([value for row in (entry.values, *entry.parts.values()) for value in row])
        columns.append(HeatColumn(entry.scorer, "", entry.values, scale, entry))
        columns += [HeatColumn(entry.scorer, part, values, scale, entry) for part, values in entry.parts.items()]
    return columns


@dataclass(frozen=True)
class StackLayout:
    """Positions of the chart's parts at one width."""

    layers: int
    top: float
    pitch: float
    stack_width: float
    lefts: tuple[float, ...]
    cell: float
    upright: bool

    def y(self, layer: int) -> float:
        """Return the top of a layer's row; layer 0 is at the bottom."""
        return self.top + (self.layers - 1 - layer) * self.pitch

    @property
    def bottom(self) -> float:
        """The lower edge of the input layer."""
        return self.top + self.layers * self.pitch

    @property
    def bar(self) -> float:
        """The height of one bar."""
        return self.pitch - max(1.0, self.pitch * 0.18)


def lay_out(width: float, layers: int, columns: Sequence[HeatColumn]) -> StackLayout:
    """Return the layout of the picture at `width`."""
    cell, gap = _cell_and_gap(width, columns)
    lefts: list[float] = []
    x = 0.0
    for place, column in enumerate(columns):
        x += gap if not place or columns[place - 1].scorer != column.scorer else 0
        lefts.append(x)
        x += cell
    stack = width - MARGIN - x
    upright = not all(_fits(list(group), cell) for _, group in groupby(columns, lambda column: column.scorer))
    longest = max((text_width(heading(column), SMALL) for column in columns), default=0.0)
    top = 24.0 if not columns else longest + 12 if upright else 44.0
    places = tuple(MARGIN + stack + left for left in lefts)
    return StackLayout(layers, max(top, 24.0), min(19.0, max(8.0, 680 / layers)), stack, places, cell, upright)


def _cell_and_gap(width: float, columns: Sequence[HeatColumn]) -> tuple[float, float]:
    """Return the width of a cell and of the gap before each scorer; many columns make the stack narrower."""
    wide, groups = width >= WIDE, len({column.scorer for column in columns})
    gap = GAP if wide else 9.0 if len(columns) <= 8 else 5.0
    if not columns:
        return 0.0, gap
    room = (width - MARGIN) * (0.62 if wide else 0.58) - groups * gap
    most = width - MARGIN - NARROWEST - groups * gap
    return min(66.0 if wide else 26.0, max(room / len(columns), min(12.0, most / len(columns)))), gap


def _fits(group: list[HeatColumn], cell: float) -> bool:
    parts = all(text_width(column.part, SMALL) <= cell for column in group)
    return parts and all(
        text_width(row, SMALL) <= cell * len(group) + 8 for row in name_rows(group[0].scorer, len(group))
    )


def name_rows(scorer: str, columns: int) -> list[str]:
    """Return a scorer's name, on two lines where it has a single column."""
    pieces = words(scorer).split(" ")
    if columns > 1 or len(pieces) == 1:
        return [" ".join(pieces)]
    return [" ".join(pieces[:-1]), pieces[-1]]


def heading(column: HeatColumn) -> str:
    """Return a column's heading where it is upright."""
    return column.part or words(column.scorer)

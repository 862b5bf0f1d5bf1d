"""The main picture: the stack of decoder layers with the region as stripes and the scores as colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from striate.artifacts import LayerScores
from striate.reporting.colours import STEPS, step_of
from striate.reporting.findings import Findings
from striate.reporting.markup import Html, tag
from striate.reporting.svg import WIDE, line, rect, text, text_width
from striate.reporting.wording import plain_number, words

GAP = 18.0
MARGIN = 30.0
SMALL = 10.5


@dataclass(frozen=True)
class Column:
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
            counted = f", {tokens} tokens" if tokens else ""
            return f"layer {layer} · {words(self.scorer)}, {self.part} tokens: {value:.5g}{counted}"
        interval = f"95% interval {self.entry.low[layer]:.5g} to {self.entry.high[layer]:.5g}"
        return f"layer {layer} · {words(self.scorer)}: {value:.5g}, {interval}, {self.entry.samples} samples"


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


def columns_of(scores: Sequence[LayerScores]) -> list[Column]:
    """Return one column a scorer and one a part, in order."""
    columns: list[Column] = []
    for entry in scores:
        scale = scale_of([value for row in (entry.values, *entry.parts.values()) for value in row])
        columns.append(Column(entry.scorer, "", entry.values, scale, entry))
        columns += [Column(entry.scorer, part, values, scale, entry) for part, values in entry.parts.items()]
    return columns


@dataclass(frozen=True)
class Layout:
    """Where everything stands at one width."""

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


def lay_out(width: float, layers: int, columns: Sequence[Column]) -> Layout:
    """Return the layout of the picture at `width`."""
    wide = width >= WIDE
    gap = GAP if wide else 9.0
    groups = len({column.scorer for column in columns})
    room = (width - MARGIN) * (0.62 if wide else 0.58) - groups * gap
    cell = min(66.0 if wide else 26.0, room / len(columns)) if columns else 0.0
    stack = width - MARGIN - len(columns) * cell - groups * gap
    lefts: list[float] = []
    x = MARGIN + stack
    for place, column in enumerate(columns):
        x += gap if not place or columns[place - 1].scorer != column.scorer else 0
        lefts.append(x)
        x += cell
    upright = not all(_fits(list(group), cell) for _, group in groupby(columns, lambda column: column.scorer))
    longest = max((text_width(_heading(column), SMALL) for column in columns), default=0.0)
    top = 24.0 if not columns else longest + 12 if upright else 44.0
    return Layout(layers, max(top, 24.0), min(19.0, max(8.0, 680 / layers)), stack, tuple(lefts), cell, upright)


def _fits(group: list[Column], cell: float) -> bool:
    """Return whether the headings of one scorer's columns fit lying down."""
    parts = all(text_width(column.part, SMALL) <= cell for column in group)
    return parts and all(text_width(row, SMALL) <= cell * len(group) + 8 for row in _rows(group[0].scorer, len(group)))


def _rows(scorer: str, columns: int) -> list[str]:
    """Return a scorer's name, on two lines where it has a single column."""
    pieces = words(scorer).split(" ")
    if columns > 1 or len(pieces) == 1:
        return [" ".join(pieces)]
    return [" ".join(pieces[:-1]), pieces[-1]]


def _heading(column: Column) -> str:
    """Return a column's heading when it stands upright."""
    return column.part or words(column.scorer)


def draw_stack(found: Findings, width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of the stack of layers at `width`."""
    columns = columns_of(found.scores.scorers) if found.scores else []
    layout = lay_out(width, found.num_layers, columns)
    shapes = [_layer(found, layout, layer) for layer in range(layout.layers)]
    shapes += _ends(layout)
    for column, left in zip(columns, layout.lefts, strict=True):
        shapes += [_cell(column, layout, left, layer) for layer in range(layout.layers)]
    for _, group in groupby(zip(columns, layout.lefts, strict=True), lambda pair: pair[0].scorer):
        shapes += _group(list(group), layout)
    return layout.bottom + (40 if columns else 26), shapes


def _layer(found: Findings, layout: Layout, layer: int) -> Html:
    """Return one layer's bar with its number."""
    y, step = layout.y(layer), 1 if layout.pitch >= 13 else 5
    shown = layer % step == 0 or layer == layout.layers - 1
    label = text(MARGIN - 8, y + layout.bar / 2 + 3.6, str(layer), class_="tick end") if shown else None
    removed = layer in found.removed
    inside = found.region is not None and layer in found.region
    state = "removed" if removed else "region" if inside else "frozen"
    bar = rect(MARGIN, y, layout.stack_width, layout.bar, layer_tip(found, layer), rx=2.5, class_=f"layer {state}")
    return tag("g", label, bar, _cross(layout, y) if removed else None)


def _cross(layout: Layout, y: float) -> Html:
    """Return the two lines that cross a removed layer out."""
    left, right, low = MARGIN + 3, MARGIN + layout.stack_width - 3, y + layout.bar - 2
    lines = line(left, y + 2, right, low), line(left, low, right, y + 2)
    return tag("g", lines, class_="cross")


def layer_tip(found: Findings, layer: int) -> str:
    """Return what happened to one layer, in words."""
    if layer in found.removed:
        return f"layer {layer}: removed"
    inside = found.region is not None and layer in found.region
    place = "in the region" if inside else "outside the region" if found.region else "no region chosen yet"
    new = found.prune.old_to_new.get(layer, layer) if found.prune else layer
    return f"layer {layer}: {place}" + (f", layer {new} after pruning" if new != layer else "")


def _ends(layout: Layout) -> list[Html]:
    """Return the words above and below the stack."""
    middle = MARGIN + layout.stack_width / 2
    above, below = layout.top - 9, layout.bottom + 15
    return [
        text(middle, above, "↑ output", class_="note middle"),
        text(middle, below, "↑ input: image and text tokens", class_="note middle"),
    ]


def _cell(column: Column, layout: Layout, left: float, layer: int) -> Html:
    """Return one score as a coloured cell."""
    step = step_of(column.scale.share(column.values[layer]))
    height = layout.pitch - 1
    return rect(left, layout.y(layer), layout.cell - 1, height, column.tip(layer), class_=f"h{step}")


def _group(group: list[tuple[Column, float]], layout: Layout) -> list[Html]:
    """Return headings and colour scale of one scorer's columns."""
    first, left = group[0]
    width = group[-1][1] + layout.cell - 1 - left
    if layout.upright:
        heads = [_upright(column, x + layout.cell / 2 + 3.5, layout) for column, x in group]
    else:
        heads = _lying(group, layout, left)
    return heads + _legend(first.scale, left, width, layout.bottom + 6)


def _upright(column: Column, x: float, layout: Layout) -> Html:
    """Return a heading that reads from bottom to top."""
    y = layout.top - 7
    kind = "note" if column.part else "head"
    return text(x, y, _heading(column), class_=kind, transform=f"rotate(-90 {x:.1f} {y:.1f})")


def _lying(group: list[tuple[Column, float]], layout: Layout, left: float) -> list[Html]:
    """Return a scorer's name above its columns, and the names of its parts."""
    rows = _rows(group[0][0].scorer, len(group))
    single = len(group) == 1
    start = layout.top - (9 + 13 * (len(rows) - 1) if single else 26)
    heads = [text(left, start + 13 * place, row, class_="head") for place, row in enumerate(rows)]
    if not single:
        heads += [text(x, layout.top - 9, column.part or "mean", class_="note") for column, x in group]
    return heads


def _legend(scale: Scale, left: float, width: float, y: float) -> list[Html]:
    """Return the colour ramp with its two ends."""
    slice_width = width / STEPS
    # Each slice reaches to the end under the next one: seams would show as stripes.
    ramp = [
        rect(left + step * slice_width, y, width - step * slice_width, 5, class_=f"h{step}") for step in range(STEPS)
    ]
    low, high = plain_number(scale.low), plain_number(scale.high)
    tip = f"colour scale from {scale.low:.5g} to {scale.high:.5g}, {'logarithmic' if scale.log else 'linear'}"
    if width < 44:
        return [
            *ramp,
            text(left + width, y + 17, high, tip, class_="tiny end"),
            text(left + width, y + 28, low, tip, class_="tiny end"),
        ]
    labels = [text(left, y + 17, low, tip, class_="tiny"), text(left + width, y + 17, high, tip, class_="tiny end")]
    if scale.log and width >= 110:
        labels.append(text(left + width / 2, y + 17, "log scale", tip, class_="tiny middle"))
    return [*ramp, *labels]

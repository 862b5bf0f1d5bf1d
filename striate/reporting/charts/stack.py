"""The stack chart: decoder layers with the region as stripes and the scores as colour."""

from itertools import groupby

from striate.reporting.charts.drawing.colours import step_of
from striate.reporting.charts.drawing.layout import (
    MARGIN,
    HeatColumn,
    Scale,
    StackLayout,
    columns_of,
    heading,
    lay_out,
    name_rows,
)
from striate.reporting.charts.drawing.svg import line, ramp, rect, text
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Html, tag
from striate.wording import plain_number

INPUT = "↑ input: image and text tokens"


def draw_stack(artifacts: RunArtifacts, width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of the stack of layers at `width`."""
    columns = columns_of(artifacts.scores.scorers) if artifacts.scores else []
    layout = lay_out(width, artifacts.num_layers, columns)
    shapes = [_layer(artifacts, layout, layer) for layer in range(layout.layers)]
    shapes += _ends(layout)
    for column, left in zip(columns, layout.lefts, strict=True):
        shapes += [_cell(column, layout, left, layer) for layer in range(layout.layers)]
    for _, group in groupby(zip(columns, layout.lefts, strict=True), lambda pair: pair[0].scorer):
        shapes += _group(list(group), layout)
    return layout.bottom + (40 if columns else 26), shapes


def _layer(artifacts: RunArtifacts, layout: StackLayout, layer: int) -> Html:
    y, step = layout.y(layer), 1 if layout.pitch >= 13 else 5
    shown = layer % step == 0 or layer == layout.layers - 1
    label = text(MARGIN - 8, y + layout.bar / 2 + 3.6, str(layer), class_="tick end") if shown else None
    removed = layer in artifacts.removed
    inside = artifacts.region is not None and layer in artifacts.region
    state = "removed" if removed else "region" if inside else "frozen"
    bar = rect(MARGIN, y, layout.stack_width, layout.bar, _layer_tip(artifacts, layer), rx=2.5, class_=f"layer {state}")
    return tag("g", label, bar, _cross(layout, y) if removed else None)


def _cross(layout: StackLayout, y: float) -> Html:
    left, right, low = MARGIN + 3, MARGIN + layout.stack_width - 3, y + layout.bar - 2
    lines = line(left, y + 2, right, low), line(left, low, right, y + 2)
    return tag("g", lines, class_="cross")


def _layer_tip(artifacts: RunArtifacts, layer: int) -> str:
    if layer in artifacts.removed:
        return f"layer {layer}: removed"
    inside = artifacts.region is not None and layer in artifacts.region
    place = "in the region" if inside else "outside the region" if artifacts.region else "no region chosen yet"
    new = artifacts.prune.old_to_new.get(layer, layer) if artifacts.prune else layer
    return f"layer {layer}: {place}" + (f", layer {new} after pruning" if new != layer else "")


def _ends(layout: StackLayout) -> list[Html]:
    middle = MARGIN + layout.stack_width / 2
    above, below = layout.top - 9, layout.bottom + 15
    return [
        text(middle, above, "↑ output", class_="note middle"),
        text(middle, below, INPUT if layout.stack_width >= 190 else "↑ input", class_="note middle"),
    ]


def _cell(column: HeatColumn, layout: StackLayout, left: float, layer: int) -> Html:
    step = step_of(column.scale.share(column.values[layer]))
    height = layout.pitch - 1
    return rect(left, layout.y(layer), layout.cell - 1, height, column.tip(layer), class_=f"h{step}")


def _group(group: list[tuple[HeatColumn, float]], layout: StackLayout) -> list[Html]:
    first, left = group[0]
    width = group[-1][1] + layout.cell - 1 - left
    if layout.upright:
        heads = [_upright(column, x + layout.cell / 2 + 3.5, layout) for column, x in group]
    else:
        heads = _lying(group, layout, left)
    return heads + _legend(first.scale, left, width, layout.bottom + 6)


def _upright(column: HeatColumn, x: float, layout: StackLayout) -> Html:
    y = layout.top - 7
    kind = "note" if column.part else "head"
    return text(x, y, heading(column), class_=kind, transform=f"rotate(-90 {x:.1f} {y:.1f})")


def _lying(group: list[tuple[HeatColumn, float]], layout: StackLayout, left: float) -> list[Html]:
    rows = name_rows(group[0][0].scorer, len(group))
    single = len(group) == 1
    start = layout.top - (9 + 13 * (len(rows) - 1) if single else 26)
    heads = [text(left, start + 13 * place, row, class_="head") for place, row in enumerate(rows)]
    if not single:
        heads += [text(x, layout.top - 9, column.part or "mean", class_="note") for column, x in group]
    return heads


def _legend(scale: Scale, left: float, width: float, y: float) -> list[Html]:
    slices = ramp(left, y, width, 5)
    low, high = plain_number(scale.low), plain_number(scale.high)
    tip = f"colour scale from {scale.low:.5g} to {scale.high:.5g}, {'logarithmic' if scale.log else 'linear'}"
    if width < 22:
        return slices
    if width < 52:
        return [
            *slices,
            text(left + width, y + 17, high, tip, class_="tiny end"),
            text(left + width, y + 28, low, tip, class_="tiny end"),
        ]
    labels = [text(left, y + 17, low, tip, class_="tiny"), text(left + width, y + 17, high, tip, class_="tiny end")]
    if scale.log and width >= 110:
        labels.append(text(left + width / 2, y + 17, "log scale", tip, class_="tiny middle"))
    return [*slices, *labels]

"""Chart of the regions of several strategies side by side, on one stack of layers."""

from collections.abc import Sequence

from striate.artifacts import Region
from striate.reporting.charts.drawing.svg import line, rect, text, text_width
from striate.reporting.html.markup import Html
from striate.wording import amount, percent, shorten

LEFT, SIZE = 30.0, 10.5
VOTES_ROOM = 58.0


def draw_strategies(regions: Sequence[Region], width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of one column a region, and the share of the regions that chose each layer."""
    layers = regions[0].num_layers
    pitch = min(19.0, max(8.0, 520 / layers))
    names = [shorten(region.spec, 34) for region in regions]
    top = max(text_width(name, SIZE) for name in [*names, "chosen by"]) + 14
    room = min(70.0, (width - LEFT - VOTES_ROOM) / len(regions))
    shapes: list[Html] = _numbers(layers, top, pitch)
    for place, (region, name) in enumerate(zip(regions, names, strict=True)):
        shapes += _column(region, name, LEFT + place * room, top, pitch, room)
    shapes += _votes(regions, LEFT + len(regions) * room + 12, top, pitch, width)
    return top + layers * pitch + 8, shapes


def _numbers(layers: int, top: float, pitch: float) -> list[Html]:
    step = 1 if pitch >= 13 else 5
    return [
        text(LEFT - 8, top + (layers - 1 - layer) * pitch + pitch / 2 + 3.2, str(layer), class_="tick end")
        for layer in range(0, layers, step)
    ]


def _column(region: Region, name: str, left: float, top: float, pitch: float, room: float) -> list[Html]:
    x = left + room / 2 + 3
    about = f"{region.spec}: {amount(len(region), 'layer')} of {region.num_layers}"
    shapes = [text(x, top - 7, name, about, class_="head", transform=f"rotate(-90 {x:.1f} {top - 7:.1f})")]
    for layer in range(region.num_layers):
        state = "region" if layer in region else "frozen"
        tip = f"layer {layer}: {'in' if layer in region else 'not in'} {region.spec}"
        y = top + (region.num_layers - 1 - layer) * pitch
        shapes.append(rect(left + 1, y, room - 3, pitch - 1.5, tip, rx=1.5, class_=f"layer {state}"))
    return shapes


def _votes(regions: Sequence[Region], left: float, top: float, pitch: float, width: float) -> list[Html]:
    """Return a bar a layer: the share of the regions that chose it."""
    room = min(120.0, width - left)
    shapes = [text(left, top - 7, "chosen by", class_="tiny"), line(left, top, left, top, class_="axis")]
    layers = regions[0].num_layers
    for layer in range(layers):
        votes = sum(layer in region for region in regions)
        tip = f"layer {layer}: in {votes} of {len(regions)} regions ({percent(votes / len(regions), 0)})"
        y = top + (layers - 1 - layer) * pitch
        shapes.append(rect(left, y, room, pitch - 1.5, tip, class_="track"))
        shapes.append(rect(left, y, room * votes / len(regions), pitch - 1.5, class_="bar quiet"))
    return shapes

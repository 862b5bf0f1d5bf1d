"""Line chart of what removed layers cost the calibration answers, cut by cut, of pictures and of text."""

from collections.abc import Mapping, Sequence

from striate.artifacts import Cut
from striate.reporting.charts.drawing.axes import marks_between, tick_label
from striate.reporting.charts.drawing.svg import line, rect, text
from striate.reporting.html.markup import Html, number, tag
from striate.wording import signed

LEFT, RIGHT, TOP, HEIGHT = 58.0, 20.0, 14.0, 210.0
CURVES = {"visual": "first", "text": "second"}


def added_costs(cuts: Sequence[Cut]) -> dict[str, list[float]]:
    """Return, by kind, what an answer token costs more than before the first cut: nothing, then after each one."""
    return {
        kind: [0.0, *(cut.after[kind] - start for cut in cuts)]
        for kind, start in cuts[0].before.items()
        if kind in CURVES
    }


def draw_cut_costs(cuts: Sequence[Cut], gone: int, width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of the curves at `width`; `gone` layers had left before the first cut."""
    added = added_costs(cuts)
    values = [value for costs in added.values() for value in costs]
    low, high = min(values), max(values)
    high = high if high > low else low + 1.0
    step = (width - LEFT - RIGHT) / len(cuts)

    def y(value: float) -> float:
        return TOP + HEIGHT * (high - value) / (high - low)

    shapes = [_grid(value, y(value), width) for value in marks_between(low, high)]
    for kind, costs in added.items():
        path = "M" + "L".join(f"{number(LEFT + place * step)} {number(y(cost))}" for place, cost in enumerate(costs))
        shapes.append(tag("path", d=path, class_=f"curve {CURVES[kind]}"))
    bottom = TOP + HEIGHT
    for place in range(len(cuts) + 1):
        x, tip = LEFT + place * step, _tip(cuts, added, place, gone)
        dots = [tag("circle", cx=x, cy=y(costs[place]), r=3, class_=f"dot {CURVES[k]}") for k, costs in added.items()]
        shapes += [*dots, rect(x - step / 2, TOP, step, HEIGHT, tip, class_="unseen")]
        if place % max(1, round(30 / step)) == 0:
            shapes.append(text(x, bottom + 17, str(gone + place), class_="tick middle"))
    name = text((LEFT + width) / 2, bottom + 34, "layers removed", class_="note middle")
    return bottom + 40, [*shapes, name]


def _grid(value: float, y: float, width: float) -> Html:
    edge = line(LEFT, y, width - RIGHT, y, class_="grid" if value else "axis")
    return tag("g", edge, text(LEFT - 8, y + 3.6, tick_label(value), class_="tick end"))


def _tip(cuts: Sequence[Cut], added: Mapping[str, Sequence[float]], place: int, gone: int) -> str:
    costs = ", ".join(f"{kind} {signed(values[place], 4)}" for kind, values in added.items())
    layer = f", last layer {cuts[place - 1].layer}" if place else ""
    return f"{gone + place} removed{layer}: {costs}"

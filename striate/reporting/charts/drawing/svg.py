"""SVG shapes, and the figure that holds a chart in a wide and a narrow form."""

from collections.abc import Callable
from typing import Any

from striate.reporting.charts.drawing.colours import STEPS
from striate.reporting.html.markup import Child, Html, tag

WIDE = 960.0
NARROW = 350.0
Draw = Callable[[float], tuple[float, list[Html]]]


def rect(x: float, y: float, width: float, height: float, tip: str = "", **attributes: Any) -> Html:
    """Return a rectangle; `tip` shows on hover."""
    return tag("rect", title(tip), x=float(x), y=float(y), width=max(0.0, width), height=max(0.0, height), **attributes)


def ramp(left: float, y: float, width: float, height: float, letter: str = "h") -> list[Html]:
    """Return the slices of a colour ramp: `h` from low to high, `d` two-sided."""
    piece = width / STEPS
    # Each slice reaches to the end under the next one: seams would show as stripes.
    return [
        rect(left + step * piece, y, width - step * piece, height, class_=f"{letter}{step}") for step in range(STEPS)
    ]


def line(x1: float, y1: float, x2: float, y2: float, **attributes: Any) -> Html:
    """Return a straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), **attributes)


def text(x: float, y: float, content: str, tip: str = "", **attributes: Any) -> Html:
    """Return a line of text with its baseline at `y`."""
    return tag("text", content, title(tip), x=float(x), y=float(y), **attributes)


def title(tip: str) -> Html | None:
    """Return a hover text, or nothing."""
    return tag("title", tip) if tip else None


def text_width(content: str, font_size: float) -> float:
    """Return a generous estimate of the width of `content`, in the unit of `font_size`."""
    return 0.6 * font_size * len(content)


def picture(name: str, label: str, draw: Draw, caption: Child = None) -> Html:
    """Return a figure drawn twice, for desk and phone; the style sheet shows the one that fits.

    `draw` gets a width and returns the height and the shapes; `name` makes ids and the saved file's name.
    """
    drawings = [_drawing(name, label, form, width, draw) for form, width in (("wide", WIDE), ("narrow", NARROW))]
    save = tag("button", "Save as SVG", class_="save", type="button", data_save=name)
    return tag("figure", drawings, tag("figcaption", tag("div", caption), save), class_="picture", id=f"figure-{name}")


def _drawing(name: str, label: str, form: str, width: float, draw: Draw) -> Html:
    height, shapes = draw(width)
    return tag(
        "svg",
        shapes,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        class_=form,
        role="img",
        aria_label=label,
        id=f"{name}-{form}",
    )

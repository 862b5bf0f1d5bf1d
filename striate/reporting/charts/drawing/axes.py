"""Axes: their ends, round values for grid lines, and how these are written."""

import math
from collections.abc import Sequence

from striate.wording import MINUS


def nice_step(highest: float, ticks: int = 4) -> float:
    """Return a round distance between about `ticks` marks up to `highest`."""
    rough = highest / ticks
    size = 10.0 ** math.floor(math.log10(rough))
    return next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)


def marks_between(low: float, high: float, ticks: int = 4) -> list[float]:
    """Return about `ticks` round values from `low` to `high`."""
    step = nice_step(high - low, ticks)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.6g}") for place in range(first, last + 1)]


def span(values: Sequence[float], room: float) -> tuple[float, float]:
    """Return the ends of an axis for `values`, with `room` on both sides as a share of what they span."""
    more = room * (max(values) - min(values)) or 0.05 * max(abs(max(values)), 1.0)
    return min(values) - more, max(values) + more


def tick_label(value: float) -> str:
    """Return a round value in its shortest form: `0.5`, `2e−4`."""
    text = f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-") if 0 < value < 1e-2 else f"{value:g}"
    return text.replace("-", MINUS)

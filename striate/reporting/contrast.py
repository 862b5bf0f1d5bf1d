"""What sets tasks apart: each layer's share in one task against its mean share in all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from striate.reporting.heat import Heat, Spot, draw_heat, ramp
from striate.reporting.markup import Html
from striate.reporting.series import Series
from striate.reporting.wording import percent, signed


@dataclass(frozen=True)
class Contrast:
    """One task's difference from the mean of all tasks, a value a layer, with the half width of its 95% interval."""

    name: str
    differences: tuple[float, ...]
    halves: tuple[float, ...]

    def sure(self, layer: int) -> bool:
        """Whether the interval of a layer's difference excludes zero."""
        return abs(self.differences[layer]) > self.halves[layer]


def contrasts_of(series: Sequence[Series]) -> list[Contrast]:
    """Return how each task's shares differ from the mean over tasks.

    A layer's share in task t is `s_tl = w_tl / sum_l w_tl`, with w the score above the task's lowest; the difference is
    `s_tl - mean_t s_tl`. Tasks are scored on samples of their own, so that of T tasks the half width of the interval is
    `sqrt((1 - 1/T)^2 h_t^2 + sum_(u != t) h_u^2 / T^2)`, h being those of the shares, with their sums taken as known.
    """
    shares, halves = [_shares(one) for one in series], [_halves(one) for one in series]
    tasks, layers = len(series), range(len(series[0].values))
    means = [sum(row[layer] for row in shares) / tasks for layer in layers]
    return [
        Contrast(
            one.name,
            tuple(shares[place][layer] - means[layer] for layer in layers),
            tuple(_half([row[layer] for row in halves], place) for layer in layers),
        )
        for place, one in enumerate(series)
    ]


def contrast_map(contrasts: Sequence[Contrast]) -> Heat:
    """Return tasks as rows and layers as columns on one two-sided scale; sure differences are outlined."""
    widest = max(abs(value) for one in contrasts for value in one.differences) or 1.0
    return Heat(
        rows=[one.name for one in contrasts],
        columns=[str(layer) for layer in range(len(contrasts[0].differences))],
        spots=[
            [
                Spot(value / widest, _tip(one, layer), marked=one.sure(layer), two_sided=True)
                for layer, value in enumerate(one.differences)
            ]
            for one in contrasts
        ],
        widest=30.0,
        column_title="layer",
    )


def draw_contrast(heat: Heat, width: float) -> tuple[float, list[Html]]:
    """Return height and shapes of the map with its two-sided colour ramp."""
    height, shapes = draw_heat(heat, width)
    ends = ("less than in other tasks", "more")
    return height + 34, [*shapes, *ramp(0, height + 8, min(300.0, width), ends, two_sided=True)]


def _weights(series: Series) -> tuple[list[float], float]:
    """Return scores above the lowest, and their sum; 1 where all are equal."""
    low = min(series.values)
    weights = [value - low for value in series.values]
    return weights, sum(weights) or 1.0


def _shares(series: Series) -> list[float]:
    """Return each layer's share in the task."""
    weights, total = _weights(series)
    return [weight / total for weight in weights]


def _halves(series: Series) -> list[float]:
    """Return half the width of each share's interval; zero where there is none."""
    _, total = _weights(series)
    if not series.low or not series.high:
        return [0.0] * len(series.values)
    return [(high - low) / 2 / total for low, high in zip(series.low, series.high, strict=True)]


def _half(halves: Sequence[float], place: int) -> float:
    """Return the half width of one task's difference from the mean over tasks."""
    tasks = len(halves)
    own = ((1 - 1 / tasks) * halves[place]) ** 2
    return math.sqrt(own + sum((half / tasks) ** 2 for other, half in enumerate(halves) if other != place))


def _tip(contrast: Contrast, layer: int) -> str:
    """Return the hover text of one cell."""
    told, half = signed(100 * contrast.differences[layer], 2), percent(contrast.halves[layer], 2)
    return f"layer {layer} · {contrast.name}: {told} points of share against the mean of tasks, 95% interval ± {half}"

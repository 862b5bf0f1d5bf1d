"""Heat map of the interaction of task and layer: a task's scores against the mean over tasks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from striate.reporting.charts.heat import Heat, Spot
from striate.reporting.data.series import Series
from striate.wording import plain_number


@dataclass(frozen=True)
class Contrast:
    """One task's difference from the mean of all tasks, a value a layer, with half its simultaneous 95% interval."""

    name: str
    differences: tuple[float, ...]
    halves: tuple[float, ...]

    def sure(self, layer: int) -> bool:
        """Whether the interval of a layer's difference excludes zero."""
        return abs(self.differences[layer]) > self.halves[layer]


def contrasts_of(series: Sequence[Series]) -> list[Contrast]:
    """Return how each task's scores differ from the mean over tasks, layer by layer.

    With `c_tl = v_tl - median_l v_tl`, task t's scores about their own level, the difference is `c_tl - mean_t c_tl`:
    the interaction of task and layer, in the scorer's own unit. Tasks are scored on samples of their own, so that of T
    tasks half its interval is `sqrt((1 - 1/T)^2 h_t^2 + sum_(u != t) h_u^2 / T^2)`, h being half those of the scores;
    the error of a task's own level is left out, since it is small over many layers. The interval is widened to hold for
    all cells at once (Bonferroni, normal quantiles): of many cells some always stand out.
    """
    centred, halves = [_centred(task) for task in series], [_halves(task) for task in series]
    tasks, layers = len(series), range(len(series[0].values))
    means = [sum(row[layer] for row in centred) / tasks for layer in layers]
    wider = widening(tasks * len(layers))
    return [
        Contrast(
            task.name,
            tuple(centred[place][layer] - means[layer] for layer in layers),
            tuple(wider * _half([row[layer] for row in halves], place) for layer in layers),
        )
        for place, task in enumerate(series)
    ]


def widening(cells: int) -> float:
    """Return by how much 95% intervals widen when they must hold for so many cells at once."""
    normal = NormalDist()
    return normal.inv_cdf(1 - 0.025 / cells) / normal.inv_cdf(0.975)


def contrast_map(contrasts: Sequence[Contrast]) -> Heat:
    """Return tasks as rows and layers as columns on one two-sided scale; sure differences have a dot."""
    widest = max(abs(value) for contrast in contrasts for value in contrast.differences) or 1.0
    return Heat(
        rows=[contrast.name for contrast in contrasts],
        columns=[str(layer) for layer in range(len(contrasts[0].differences))],
        spots=[
            [
                Spot(value / widest, _tip(contrast, layer), dotted=contrast.sure(layer), two_sided=True)
                for layer, value in enumerate(contrast.differences)
            ]
            for contrast in contrasts
        ],
        widest=30.0,
        column_title="layer",
        ends=("less than in other tasks", "more"),
        two_sided=True,
    )


def _centred(series: Series) -> list[float]:
    """Return the scores less their median over the layers: one high layer does not shift all the others."""
    level = median(series.values)
    return [value - level for value in series.values]


def _halves(series: Series) -> list[float]:
    """Return half the width of each score's interval: zero for exact scores, endless where none can hold."""
    if not series.low or not series.high:
        return [math.inf if series.samples else 0.0] * len(series.values)
    return [(high - low) / 2 for low, high in zip(series.low, series.high, strict=True)]


def _half(halves: Sequence[float], place: int) -> float:
    tasks = len(halves)
    own = ((1 - 1 / tasks) * halves[place]) ** 2
    return math.sqrt(own + sum((half / tasks) ** 2 for other, half in enumerate(halves) if other != place))


def _tip(contrast: Contrast, layer: int) -> str:
    value = plain_number(contrast.differences[layer])
    half = contrast.halves[layer]
    interval = f"simultaneous 95% interval ± {plain_number(half)}" if math.isfinite(half) else "too few samples to tell"
    return f"layer {layer} · {contrast.name}: {value} against the mean of tasks, {interval}"

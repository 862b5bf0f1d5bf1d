"""The function map: a heat map of tasks by layers, with peaks and centres of mass."""

from collections.abc import Sequence

from striate.artifacts import Peak
from striate.reporting.charts.drawing.layout import Scale
from striate.reporting.charts.heat import Heat, Lane, Spot
from striate.reporting.data.series import Series, stability
from striate.reporting.html.markup import Html
from striate.reporting.html.tables import Cell, figures, table
from striate.wording import count, percent


def function_map(series: Sequence[Series]) -> Heat:
    """Return tasks as rows and layers as columns; each row has a scale of its own, its peak and centre below it."""
    layers = range(len(series[0].values))
    return Heat(
        rows=[scored.name for scored in series],
        columns=[str(layer) for layer in layers],
        spots=[_spots(scored) for scored in series],
        lanes=[_lane(scored) for scored in series],
        widest=30.0,
        column_title="layer",
        ends=("least of its row", "most of its row"),
    )


def peak_table(series: Sequence[Series]) -> Html:
    """Return where each task peaks, its centre of mass, and how stable its ranking of layers is."""
    heads = ["task", "samples", "peak layer", "95% interval", "centre of mass", "95% interval", "stability"]
    return table(heads, [_cells(scored) for scored in series])


def _spots(series: Series) -> list[Spot]:
    scale = Scale(min(series.values), max(series.values), log=False)
    best = series.values.index(max(series.values))
    return [
        Spot(scale.share(value), series.tip(layer), marked=layer == best) for layer, value in enumerate(series.values)
    ]


def _lane(series: Series) -> Lane | None:
    peak = series.peak
    if peak is None:
        return None
    return Lane(
        peak.centre,
        peak.centre_low,
        peak.centre_high,
        (float(peak.low), float(peak.high)),
        f"{series.name}: {_peak_words(peak)}; {_centre_words(peak)}",
    )


def _peak_words(peak: Peak) -> str:
    return f"highest at layer {peak.layer} (95% interval {peak.low} to {peak.high})"


def _centre_words(peak: Peak) -> str:
    return f"centre of mass {peak.centre:.1f} (95% interval {peak.centre_low:.1f} to {peak.centre_high:.1f})"


def _cells(series: Series) -> list[Cell]:
    peak = series.peak
    measured = (
        [
            str(peak.layer),
            f"{peak.low} to {peak.high} ({percent(peak.share, 0)} the same)",
            f"{peak.centre:.1f}",
            f"{peak.centre_low:.1f} to {peak.centre_high:.1f}",
        ]
        if peak
        else [str(series.values.index(max(series.values))), "–", "–", "–"]
    )
    return [
        Cell(series.name, head=True),
        *figures(count(series.samples), *measured),
        Cell(stability(series.split_half, series.samples), long=True),
    ]

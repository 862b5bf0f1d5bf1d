"""Heat map of layer scores: rows are decoder layers, columns are scorers, kinds of tokens or tasks."""

from collections.abc import Sequence
from dataclasses import replace

from striate.artifacts import Scores
from striate.reporting.charts.drawing.layout import scale_of
from striate.reporting.charts.heat import Heat, Spot
from striate.reporting.data.series import Series, series_of, whole
from striate.wording import plain_number, words


def map_of_scorer(scores: Scores, scorer: str) -> Heat:
    """Return the map of one scorer: all samples, its parts, each task."""
    return _heat(series_of(scores, scorer))


def map_of_all(scores: Scores, task: str | None = None) -> Heat:
    """Return the map of every scorer, on all samples or on those of one task."""
    entries = scores.scorers if task is None else scores.tasks[task]
    return _heat([whole(entry, words(entry.scorer), "scorer") for entry in entries])


def _heat(columns: Sequence[Series]) -> Heat:
    """Return series side by side, the input at the bottom; each column has a scale of its own."""
    layers = range(len(columns[0].values))
    spots = [_spots(series) for series in columns]
    kinds = [series.kind for series in columns]
    return Heat(
        rows=[str(layer) for layer in reversed(layers)],
        columns=[series.name for series in columns],
        spots=[[column[layer] for column in spots] for layer in reversed(layers)],
        gaps=frozenset(place for place in range(1, len(kinds)) if kinds[place] != kinds[place - 1]),
        feet=[(plain_number(min(series.values)), plain_number(max(series.values))) for series in columns],
        row_title="layer",
        ends=("lowest of its column", "highest of its column"),
    )


def _spots(series: Series) -> list[Spot]:
    scale = scale_of(series.values)
    best = series.values.index(max(series.values))
    spots = [
        Spot(scale.share(value), series.tip(layer), plain_number(value)) for layer, value in enumerate(series.values)
    ]
    spots[best] = replace(spots[best], marked=scale.high > scale.low)
    return spots

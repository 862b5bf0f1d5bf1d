"""Sections on layer scores: map, bands, function map, agreement, stability, spans, strategies."""

from collections.abc import Sequence
from functools import partial

from striate.artifacts import LayerScores, Region, Scores
from striate.reporting.charts.agreement import agreement_of
from striate.reporting.charts.bands import draw_bands
from striate.reporting.charts.contrast import contrast_map, contrasts_of
from striate.reporting.charts.drawing.svg import picture
from striate.reporting.charts.function_map import function_map, peak_table
from striate.reporting.charts.heat import Heat, draw_heat
from striate.reporting.charts.layer_map import map_of_all, map_of_scorer
from striate.reporting.charts.layer_spans import span_triangle
from striate.reporting.charts.strategies import draw_strategies
from striate.reporting.data.series import Series, parts_of, scorers_with_tasks, stability, tasks_of, whole
from striate.reporting.html.chooser import chooser, slug
from striate.reporting.html.markup import Child, Html, tag
from striate.reporting.html.tables import Cell, figures, table
from striate.scores.student_t import FEWEST
from striate.wording import count, words

MAP_NOTE = (
    "Each column has its own colours, from its lowest to its highest value, on a logarithmic scale where these are "
    "positive and a factor of 5 apart; its highest layer is outlined."
)
CONTRAST_NOTE = (
    "What sets the tasks apart: each layer's score against its mean over the tasks, each task about its own level. One "
    "scale for the whole picture; a dot stands where the 95% interval excludes zero, with all cells taken together."
)
TASK_NOTE = (
    "Each row has its own colours. The highest layer is outlined; the bar below the row spans the 95% interval of that "
    "layer, the dot is the centre of mass of the scores above the lowest, with its 95% interval."
)


def draw_layer_maps(scores: Scores) -> Html:
    """Return the map and the bands, with a menu of scorers."""
    everything: list[tuple[str, Child]] = []
    if len(scores.scorers) > 1:
        everything.append(("every scorer, all samples", _figure("map-all", map_of_all(scores), MAP_NOTE)))
        everything += [
            (f"every scorer, {words(task)}", _figure(f"map-{place}-{slug(task)}", heat, MAP_NOTE))
            for place, (task, entries) in enumerate(scores.tasks.items())
            if entries
            for heat in [map_of_all(scores, task)]
        ]
    single = [(words(entry.scorer), _of_scorer(scores, entry)) for entry in scores.scorers]
    return chooser("map", "show", [*everything, *single])


def _of_scorer(scores: Scores, entry: LayerScores) -> Child:
    name, series = slug(entry.scorer), [whole(entry), *parts_of(entry)]
    note = "Lines are means, bands 95% bootstrap intervals over samples." if entry.samples else "Weights only: exact."
    if entry.samples and not entry.low:
        note = f"Lines are means. Fewer than {FEWEST} samples with such tokens: no interval can hold."
    label = f"{words(entry.scorer)} of {len(entry.values)} layers"
    bands = picture(f"bands-{name}", label, lambda width: draw_bands(series, width), note)
    return [bands, _figure(f"map-{name}", map_of_scorer(scores, entry.scorer), MAP_NOTE)]


def _figure(name: str, heat: Heat, note: str, label: str = "") -> Html:
    return picture(name, label or words(name), partial(draw_heat, heat), note)


def draw_function_maps(scores: Scores) -> Html | None:
    """Return the function map, with a menu of scorers, or None where no scorer was run by task."""
    names = scorers_with_tasks(scores)
    return chooser("function", "scorer", [(words(name), _by_task(scores, name)) for name in names]) if names else None


def _by_task(scores: Scores, scorer: str) -> Child:
    series = tasks_of(scores, scorer)
    name = slug(scorer)
    shown: list[Child] = [
        _figure(f"function-{name}", function_map(series), TASK_NOTE),
        peak_table(series),
        _few_samples(series),
    ]
    if len(series) > 1:
        heat = contrast_map(contrasts_of(series))
        shown.insert(1, _figure(f"contrast-{name}", heat, CONTRAST_NOTE))
        note = "Spearman's rank correlation of the layers between tasks: near 1, the tasks need the same layers."
        agreement = _figure(f"tasks-{name}", agreement_of(series), note)
        shown.append(tag("details", tag("summary", "Agreement between tasks"), agreement))
    return shown


def _few_samples(series: Sequence[Series]) -> Html | None:
    """Return a warning where tasks have too few samples for an interval, or None."""
    few = [scored.name for scored in series if scored.samples and not scored.low]
    if not few:
        return None
    warning = f"Fewer than {FEWEST} samples: {', '.join(few)}. No interval of so few holds, and none is drawn."
    return tag("p", warning, class_="missing")


def draw_agreements(scores: Scores) -> Html | None:
    """Return the agreement between scorers, with a menu of tasks, or None where a single scorer ran."""
    if len(scores.scorers) < 2:
        return None
    note = "Spearman's rank correlation between scorers over the layers: 1 is the same ranking, 0 none in common."
    groups = {"all samples": scores.scorers, **{words(task): entries for task, entries in scores.tasks.items()}}
    choices = []
    for place, (title, entries) in enumerate(groups.items()):
        series = [whole(entry, words(entry.scorer), "scorer") for entry in entries]
        if len(series) > 1:
            choices.append((title, _figure(f"agreement-{place}", agreement_of(series), note)))
    return chooser("agreement", "on", choices)


def draw_stability(scores: Scores) -> Html:
    """Return, for every scorer, how stable its ranking of the layers is, in words."""
    rows = [
        [
            Cell(words(entry.scorer), head=True),
            *figures(count(entry.samples) if entry.samples else "none", _peak(entry)),
            Cell(stability(entry.split_half, entry.samples), long=True),
        ]
        for entry in scores.scorers
    ]
    return table(["scorer", "samples", "highest layer", "stability of the ranking"], rows)


def _peak(entry: LayerScores) -> str:
    best = entry.values.index(max(entry.values))
    return f"{best} ({entry.peak.low} to {entry.peak.high})" if entry.peak and entry.samples else str(best)


def draw_span_maps(scores: Scores) -> Html | None:
    """Return the triangles of spans, or None where no scorer has spans."""
    entries = [entry for entry in scores.scorers if entry.spans]
    note = (
        "How far a span of layers turns its input; the shortest distance of each length is outlined: "
        "the span that could go at the least cost."
    )
    choices = [
        (name, _figure(f"spans-{slug(entry.scorer)}", span_triangle(entry), note, f"{name} of spans"))
        for entry in entries
        for name in [words(entry.scorer)]
    ]
    return chooser("spans", "scorer", choices) if choices else None


def draw_side_by_side(regions: Sequence[Region]) -> Html:
    """Return the regions of several strategies on one stack."""
    note = (
        f"Regions of {count(len(regions))} strategies, as many layers each, on one stack; the input is at the bottom."
    )
    return picture("strategies", "regions of several strategies", lambda width: draw_strategies(regions, width), note)

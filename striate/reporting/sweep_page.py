"""The page of a sweep: how far it is, what is kept against what it takes, and a row a group of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import get_args

from striate.artifacts import RunState, SweepRecord, SweptGroup, SweptScore
from striate.reporting.charts.drawing.colours import theme_css
from striate.reporting.charts.drawing.svg import picture
from striate.reporting.charts.pareto import ParetoLine, ParetoPoint, draw_pareto
from striate.reporting.html.markup import Child, Html, tag
from striate.reporting.html.tables import Cell, figures, table
from striate.reporting.sweep_rows import cells, columns, settings_told
from striate.reporting.sweep_wording import COMPARED, kept_told, legend, score_heads, score_told, scores_told
from striate.wording import amount

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

BEST = "★"


def draw_sweep(record: SweepRecord, title: str) -> str:
    """Return the page as HTML, one file without network requests."""
    style = files("striate.reporting").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style.replace("/* theme */", theme_css()))),
    )
    top = tag("header", tag("h1", title), tag("p", _how_far(record)), _best(record))
    main = tag("main", *_pictures(record), _section("runs", _table(record)), *_failed(record))
    return f"<!doctype html>\n{tag('html', head, tag('body', top, main), lang='en')}\n"


def _how_far(record: SweepRecord) -> str:
    counts = ", ".join(f"{record.count(state)} {state}" for state in get_args(RunState) if record.count(state))
    return f"{amount(len(record.runs), 'run')}: {counts}."


def _best(record: SweepRecord) -> Html | None:
    scored = [group for group in record.groups if group.visual]
    if not scored:
        return None
    best = max(scored, key=lambda group: group.visual.mean if group.visual else 0.0)
    against = next((group for group in record.groups if group.compared), None)
    shown, kept = columns(record), kept_told(best.visual)
    held = f", which keeps {kept} of {settings_told(against, shown)}" if against and kept and against != best else ""
    return tag("p", f"Highest visual score: {settings_told(best, shown)}, {score_told(best.visual)}{held}.")


def _pictures(record: SweepRecord) -> list[Child]:
    drawn: list[Child] = []
    for kind in ("visual", "text"):
        points = [point for group in record.groups if (point := _point(group, kind, columns(record)))]
        if len(points) > 1:
            lines = [ParetoLine(label=kind, shade="s1", points=(point,)) for point in points]
            shape = picture(
                f"sweep-{kind}",
                f"{kind} score kept against seconds of training",
                partial(_drawn, lines),
                "% kept, whiskers 95% intervals over items; better is up and to the left.",
            )
            drawn.append(_section(f"{kind} score against time", shape))
    return drawn


def _drawn(lines: Sequence[ParetoLine], width: float) -> tuple[float, list[Html]]:
    return draw_pareto(lines, "seconds of training", width)


def _point(group: SweptGroup, kind: str, shown: Mapping[str, str]) -> ParetoPoint | None:
    score: SweptScore | None = getattr(group, kind)
    if score is None or score.kept is None or group.train_seconds is None:
        return None
    name = settings_told(group, shown)
    tip = f"{name}: {kept_told(score)}, {group.train_seconds:.0f} s"
    return ParetoPoint(name=name, x=group.train_seconds, kept=score.kept, low=score.low, high=score.high, tip=tip)


def _table(record: SweepRecord) -> Html | None:
    if not record.groups:
        return None
    shown = columns(record)
    scores = score_heads(record)
    heads = [*shown.values(), "model", "seeds", *scores, "held out", "seconds", "peak, GiB", "layers"]
    rows = table(heads, [_row(group, record, shown, scores) for group in record.groups])
    return tag("div", rows, [tag("p", f"{line}.") for line in legend(record, BEST)])


def _row(group: SweptGroup, record: SweepRecord, shown: Mapping[str, str], scores: Sequence[str]) -> list[Cell]:
    marks = f"{f'  {BEST}' if group.best else ''}{f'  {COMPARED}' if group.compared else ''}"
    held_out = group.measured.get(record.chosen_by or "loss")
    numbers = figures(
        str(len(group.seeds)),
        *scores_told(group, scores),
        "" if held_out is None else f"{held_out:.3f}",
        "" if group.train_seconds is None else f"{group.train_seconds:.0f}",
        "" if group.peak_memory_gib is None else f"{group.peak_memory_gib:.1f}",
        "" if group.layers is None else str(group.layers),
    )
    first, *others = [*cells(group, shown), group.model]
    return [Cell(f"{first}{marks}", head=True), *map(Cell, others), *numbers]


def _failed(record: SweepRecord) -> list[Child]:
    failed = [run for run in record.runs if run.state == "failed"]
    items = [tag("li", tag("b", run.name), ": ", run.error) for run in failed]
    return [_section("failed", tag("ul", items))] if items else []


def _section(title: str, *content: Child) -> Html:
    return tag("section", tag("h2", title), *content)

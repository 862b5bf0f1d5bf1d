"""The page of a sweep: how far it is, what is kept against what it takes, and a row a group of runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from typing import get_args

from striate.artifacts import RunState, SweepRecord, SweptGroup, SweptScore
from striate.reporting.charts.drawing.colours import theme_css
from striate.reporting.charts.drawing.svg import picture
from striate.reporting.charts.pareto import ParetoLine, ParetoPoint, draw_pareto
from striate.reporting.html.markup import Child, Html, tag
from striate.reporting.html.tables import Cell, figures, table
from striate.reporting.html.wording import amount

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


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


def settings_told(group: SweptGroup, varied: Sequence[str]) -> str:
    """Return what a group changes, in a few words."""
    told = ", ".join(f"{name.rpartition('.')[2]} {group.settings[name]}" for name in varied if name in group.settings)
    return f"{told or 'the base'}{'' if group.model == 'tuned' else f', {group.model}'}"


def score_told(score: SweptScore | None) -> str:
    """Return a score: its mean, and its spread over seeds where there is one."""
    if score is None:
        return ""
    return f"{score.mean:.1f}" + ("" if score.spread is None else f" ± {score.spread:.1f}")


def kept_told(score: SweptScore | None) -> str:
    """Return what a score keeps, with its interval."""
    if score is None or score.kept is None:
        return ""
    ends = "" if score.low is None or score.high is None else f" ({score.low:.1f} to {score.high:.1f})"
    return f"{score.kept:.1f}%{ends}"


def _how_far(record: SweepRecord) -> str:
    counts = ", ".join(f"{record.count(state)} {state}" for state in get_args(RunState) if record.count(state))
    return f"{amount(len(record.runs), 'run')}: {counts}."


def _best(record: SweepRecord) -> Html | None:
    scored = [group for group in record.groups if group.visual]
    if not scored:
        return None
    best = max(scored, key=lambda group: group.visual.mean if group.visual else 0.0)
    against = next((group for group in record.groups if group.compared), None)
    held = f", which keeps {kept_told(best.visual)} of {settings_told(against, record.varied)}" if against else ""
    return tag("p", f"Highest visual score: {settings_told(best, record.varied)}, {score_told(best.visual)}{held}.")


def _pictures(record: SweepRecord) -> list[Child]:
    drawn: list[Child] = []
    for kind in ("visual", "text"):
        points = [point for group in record.groups if (point := _point(group, kind, record.varied))]
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


def _point(group: SweptGroup, kind: str, varied: Sequence[str]) -> ParetoPoint | None:
    score: SweptScore | None = getattr(group, kind)
    if score is None or score.kept is None or group.train_seconds is None:
        return None
    name = settings_told(group, varied)
    tip = f"{name}: {kept_told(score)}, {group.train_seconds:.0f} s"
    return ParetoPoint(name=name, x=group.train_seconds, kept=score.kept, low=score.low, high=score.high, tip=tip)


def _table(record: SweepRecord) -> Html | None:
    if not record.groups:
        return None
    names = [name.rpartition(".")[2] for name in record.varied if any(name in one.settings for one in record.groups)]
    heads = [*names, "model", "seeds", "visual", "kept", "text", "kept", "held out", "seconds", "peak, GiB", "layers"]
    return table(heads, [_row(group, record) for group in record.groups])


def _row(group: SweptGroup, record: SweepRecord) -> list[Cell]:
    paths = [name for name in record.varied if any(name in one.settings for one in record.groups)]
    settings = [str(group.settings.get(name, "")) for name in paths]
    marks = f"{'  ★' if group.best else ''}{'  = 100%' if group.compared else ''}"
    held_out = group.measured.get(record.chosen_by or "loss")
    numbers = figures(
        str(len(group.seeds)),
        score_told(group.visual),
        kept_told(group.visual),
        score_told(group.text),
        kept_told(group.text),
        "" if held_out is None else f"{held_out:.3f}",
        "" if group.train_seconds is None else f"{group.train_seconds:.0f}",
        "" if group.peak_memory_gib is None else f"{group.peak_memory_gib:.1f}",
        "" if group.layers is None else str(group.layers),
    )
    head = [Cell(f"{text}{marks if index == 0 else ''}", head=index == 0) for index, text in enumerate(settings)]
    return [*head, Cell(group.model), *numbers]


def _failed(record: SweepRecord) -> list[Child]:
    failed = [run for run in record.runs if run.state == "failed"]
    items = [tag("li", tag("b", run.name), ": ", run.error) for run in failed]
    return [_section("failed", tag("ul", items))] if items else []


def _section(title: str, *content: Child) -> Html:
    return tag("section", tag("h2", title), *content)

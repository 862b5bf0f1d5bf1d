"""Artifacts in a notebook: the page's own drawings, each in a frame of its own, without scripts."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from striate.artifacts import (
    Bench,
    Curve,
    Document,
    GateResult,
    PruneRecord,
    RateSearch,
    Region,
    Retention,
    Scores,
    TrainRecord,
)
from striate.reporting.charts.drawing.colours import theme_css
from striate.reporting.charts.drawing.svg import picture
from striate.reporting.charts.stack import draw_stack
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Child, Html, join, tag
from striate.reporting.sections.gate_table import draw_gate
from striate.reporting.sections.pruning_curve import draw_curve
from striate.reporting.sections.rates_tried import draw_rate_search
from striate.reporting.sections.retention import draw_retention
from striate.reporting.sections.speeds import draw_speeds
from striate.reporting.sections.trained import draw_course, draw_trained

# The height of a frame, as people see it before they scroll in it, and what its margins take.
_TALL, _MARGINS = 420, 60
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# Buttons do nothing without the page's scripts.
_STYLE = ".save{display:none}body{padding:8px 12px;max-width:860px}"


def html_of(document: Document) -> str | None:
    """Return the drawing of an artifact as HTML for a notebook; None of one that the page does not draw."""
    for kind, draw in _DRAWINGS.items():
        if isinstance(document, kind):
            content = join(draw(document))
            return _frame(content, type(document).__name__, _height(document)) if content else None
    return None


def _frame(content: Html, name: str, height: float) -> str:
    """Return a frame that styles of the notebook don't reach, nor its own the notebook."""
    style = files("striate.reporting").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("style", Html(style.replace("/* theme */", theme_css()) + _STYLE)),
    )
    page = f"<!doctype html>{tag('html', head, tag('body', content), lang='en')}"
    look = f"width:100%;height:{height:.0f}px;border:0"
    return str(tag("iframe", srcdoc=page, sandbox="", title=name, loading="lazy", style=look))


def _height(document: Document) -> float:
    if isinstance(document, Region | Scores | PruneRecord):
        return draw_stack(_stack_of(document), 800)[0] + _MARGINS
    return _TALL


def _stack_of(document: Region | Scores | PruneRecord) -> RunArtifacts:
    if isinstance(document, Region):
        return RunArtifacts(Path(), region=document)
    if isinstance(document, Scores):
        return RunArtifacts(Path(), scores=document)
    return RunArtifacts(Path(), region=document.region, prune=document)


def _stack(document: Any) -> Child:
    artifacts = _stack_of(document)
    told = f"{artifacts.num_layers} decoder layers, the input at the bottom."
    if artifacts.region is not None:
        told += f" In the region: {', '.join(map(str, artifacts.region.layers)) or 'none'}."
    if artifacts.removed:
        told += f" Removed: {', '.join(map(str, artifacts.removed))}."
    if artifacts.scores is not None:
        told += " Colour is importance: higher is kept."
    return picture("layers", told, lambda width: draw_stack(artifacts, width), tag("p", told))


def _trained(record: Any) -> Child:
    return [draw_trained(record), draw_course(record)]


_DRAWINGS: dict[type[Document], Callable[[Any], Child]] = {
    Region: _stack,
    Scores: _stack,
    PruneRecord: _stack,
    TrainRecord: _trained,
    Retention: lambda retention: draw_retention(retention.rows) if retention.rows else None,
    GateResult: draw_gate,
    Curve: draw_curve,
    RateSearch: draw_rate_search,
    Bench: draw_speeds,
}

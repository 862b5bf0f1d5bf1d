"""The sections of the page, top to bottom; a section whose artifact is missing says what has not been run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from striate.reporting.bars import Row, draw_bars, rows_of
from striate.reporting.costs import draw_models, draw_stages, draw_surgery
from striate.reporting.findings import Findings
from striate.reporting.gallery import draw_gallery
from striate.reporting.loss import draw_loss, steps_a_point
from striate.reporting.markup import Child, Html, tag
from striate.reporting.provenance import draw_provenance
from striate.reporting.retention import draw_retention
from striate.reporting.stack import draw_stack
from striate.reporting.svg import picture
from striate.reporting.trained import draw_course, draw_trained
from striate.reporting.wording import amount


def draw_sections(found: Findings) -> list[Html]:
    """Return the sections of the page, top to bottom."""
    visual = rows_of(found, "visual")
    return [
        _section("stack", "The stack of layers", _stack(found)),
        _section("tasks", "Visual tasks", _tasks(found, "visual", visual), f"{len(visual)} tasks" if visual else ""),
        _section("text", "Text tasks", _text_tasks(found)),
        _section("gallery", "Questions and answers", _gallery(found)),
        _section("retention", "Change from the baseline", _retention(found)),
        _section("trained", "What trained", _trained(found)),
        _section("loss", "Training", _loss(found)),
        _section("costs", "Size, time and memory", _costs(found)),
        _section("repeat", "Run it again", draw_provenance(found)),
    ]


def _section(name: str, title: str, content: Child, aside: str = "") -> Html:
    """Return one section with its heading."""
    heading = tag("h2", title, tag("small", aside) if aside else None)
    return tag("section", heading, content, id=name)


def _missing(stage: str, what: str) -> Html:
    """Return the note that a stage has not been run."""
    return tag("p", f"{what}. ", "Not run yet: ", tag("code", f"striate {stage}"), ".", class_="missing")


def _key(entries: Sequence[tuple[str, str]]) -> Html:
    """Return a legend of colour patches."""
    return tag("ul", [tag("li", tag("i", class_=f"key {kind}"), name) for kind, name in entries], class_="legend")


def _stack(found: Findings) -> Child:
    """Return the main picture with its legend."""
    if not found.num_layers:
        return _missing("select", "No region has been chosen and no layer scored")
    region = found.region
    entries = [("region", f"in the region ({len(region)})")] if region else []
    entries.append(("layer", "outside, frozen" if region else "decoder layer"))
    entries += [("removed", f"removed ({len(found.removed)})")] if found.removed else []
    words_below: list[Child] = ["Each bar is one decoder layer, the input at the bottom. "]
    if found.scores:
        words_below.append(
            f"Colour is importance (higher is kept) on {amount(found.scores.samples, 'calibration sample')}; "
            "a scorer and its parts share one scale, logarithmic where scores span a factor of 5. Hover for values."
        )
    label = f"{found.num_layers} decoder layers; region {list(region.layers) if region else 'not chosen'}"
    shown = picture("layers", label, lambda width: draw_stack(found, width), tag("p", words_below))
    notes = [] if region else [_missing("select", "No region has been chosen")]
    notes += [] if found.scores else [_missing("analyze", "Layers have not been scored")]
    notes += [] if found.prune else [_not_pruned(found)]
    return [_key(entries), shown, notes]


def _not_pruned(found: Findings) -> Html:
    """Return why no layer is removed: not asked for, or not run yet."""
    if found.config and not found.config.prune.remove:
        return tag("p", "No layer was to be removed: prune.remove is 0.", class_="missing")
    return _missing("prune", "No layer has been removed")


def _tasks(found: Findings, kind: str, rows: Sequence[Row]) -> Child:
    """Return the bars of one kind of task."""
    if not rows and found.evals:
        return tag("p", f"The test packs of this run hold no {kind} task.", class_="missing")
    if not rows:
        return _missing("evaluate", f"No {kind} task has been evaluated")
    label = f"Scores on {len(rows)} {kind} tasks"
    bars = picture(
        f"{kind}-bars", label, lambda width: draw_bars(rows, width), "Score in %, whiskers are 95% intervals."
    )
    return [_key([(name, name) for name in found.labels]), bars]


def _text_tasks(found: Findings) -> Child:
    """Return the text tasks: shares of right answers, then perplexity on its own axis."""
    rows, perplexity = rows_of(found, "text"), rows_of(found, "text", "perplexity")
    shown: list[Child] = [_tasks(found, "text", rows)] if rows or not perplexity else []
    if perplexity:
        caption = "Mean nats a token: lower is better. Perplexity is e to this power. Whiskers are 95% intervals."
        label = f"Nats a token on {len(perplexity)} texts, lower is better"
        shown.append(tag("h3", "Perplexity", tag("small", "lower is better")))
        shown.append(None if rows else _key([(name, name) for name in found.labels]))
        shown.append(picture("perplexity-bars", label, lambda width: draw_bars(perplexity, width), caption))
    return shown


def _gallery(found: Findings) -> Child:
    """Return the gallery, or say why there is none."""
    if found.config and not found.config.report.examples:
        return tag("p", "Left out: report.examples is 0.", class_="missing")
    return draw_gallery(found) or _missing("evaluate", "No model has answered a question with a picture")


def _retention(found: Findings) -> Child:
    """Return the table of paired differences."""
    if not found.retention or not found.retention.rows:
        return _missing("evaluate", "Models have not been compared")
    base = found.retention.baseline
    caption = (
        f"Every model against {base} on the same items, {found.retention.repetitions} paired bootstrap repetitions. "
        "Rows over all tasks are unweighted means of the task scores; n counts test items. "
        f"Retention is the score over that of {base}; for perplexity, e to the power of nats saved."
    )
    return [tag("p", caption, class_="caption"), draw_retention(found.retention.rows)]


def _trained(found: Findings) -> Child:
    """Return what trained."""
    return draw_trained(found.train) if found.train else _missing("train", "Nothing has been trained")


def _loss(found: Findings) -> Child:
    """Return the course of training."""
    facts_of_run = draw_course(found.train) if found.train else None
    if not found.log:
        return [facts_of_run, _missing("train", "No training log")]
    size = steps_a_point(found.log)
    each = "each step" if size == 1 else f"the mean of every {size} steps"
    caption = f"Loss on answer tokens: {each} faint, the running mean over a tenth of the run strong."
    gone = sum(not math.isfinite(step.loss) for step in found.log)
    caption += f" {amount(gone, 'step')} without a finite loss left out." if gone else ""
    label = f"Training loss over {amount(len(found.log), 'step')}"
    return [facts_of_run, picture("loss", label, lambda width: draw_loss(found.log, width), caption)]


def _costs(found: Findings) -> Child:
    """Return sizes and costs."""
    blocks: list[Child] = [draw_models(found), draw_stages(found), draw_surgery(found)]
    if not any(blocks):
        return tag("p", "No stage is recorded and no model evaluated.", class_="missing")
    return blocks

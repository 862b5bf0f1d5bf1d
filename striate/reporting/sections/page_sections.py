"""The sections of the page, top to bottom; stages that have not run are listed before the last."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from striate.artifacts import Region
from striate.reporting.charts.bars import rows_of
from striate.reporting.charts.drawing.svg import picture
from striate.reporting.charts.loss_curve import draw_loss, steps_a_point
from striate.reporting.charts.stack import draw_stack
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.browser import draw_browser
from striate.reporting.html.markup import Child, Html, join, tag
from striate.reporting.sections.analysis import (
    draw_agreements,
    draw_function_maps,
    draw_layer_maps,
    draw_side_by_side,
    draw_span_maps,
    draw_stability,
)
from striate.reporting.sections.costs import draw_models, draw_stages, draw_surgery
from striate.reporting.sections.cuts import draw_cuts
from striate.reporting.sections.evaluation import comparison, key, perplexity_bars, task_bars, trade_off
from striate.reporting.sections.harnesses import draw_harnesses
from striate.reporting.sections.next_steps import WHERE, next_step
from striate.reporting.sections.provenance import draw_provenance
from striate.reporting.sections.pruning_curve import draw_curve
from striate.reporting.sections.rates_tried import draw_rate_search
from striate.reporting.sections.speeds import draw_speeds
from striate.reporting.sections.trained import draw_course, draw_trained
from striate.wording import amount

HALVES = (
    "How far two random halves of the samples rank the layers alike (Spearman's correlation), with its 95% interval, "
    "and how many samples would make that 0.9. The highest layer is given with its 95% bootstrap interval."
)


class Missing(Html):
    """The note that a stage has not been run."""


@dataclass(frozen=True)
class Section:
    """One section: `part` is its word in the contents bar, `id` its address, `aside` a remark beside its title."""

    part: str
    id: str
    title: str
    content: Child
    aside: str = ""

    def draw(self) -> Html:
        """Return the section as HTML."""
        heading = tag("h2", self.title, tag("small", self.aside) if self.aside else None)
        return tag("section", heading, self.content, id=self.id)


def sections_of(artifacts: RunArtifacts, regions: Sequence[Region] = ()) -> list[Section]:
    """Return the sections of the page, top to bottom; those that would be empty are listed before the last."""
    planned = [*_results(artifacts), *_on_layers(artifacts, regions), *_on_training(artifacts)]
    shown = [one for one in planned if one.content is not None and not isinstance(one.content, Missing)]
    missing = [one.content for one in planned if isinstance(one.content, Missing)]
    last = [Section("provenance", "missing", "Not run yet", missing)] if missing else []
    return [*shown, *last, Section("provenance", "repeat", "Run it again", draw_provenance(artifacts))]


def _results(artifacts: RunArtifacts) -> list[Section]:
    """Return what the models scored, what it costs, and what they answered."""
    visual = rows_of(artifacts, "visual")
    aside = amount(len(visual), "task") if visual else ""
    curve, speed = artifacts.curve, artifacts.speed
    return [
        Section("tasks", "tasks", "Visual tasks", _tasks(artifacts, "visual"), aside),
        Section("tasks", "text", "Text tasks", _text_tasks(artifacts)),
        Section("tasks", "harnesses", "Harnesses", draw_harnesses(artifacts.suites)),
        Section("tasks", "retention", "What changed", _retention(artifacts)),
        Section("trade-off", "trade", "Size, speed and quality", trade_off(artifacts)),
        Section("trade-off", "curve", "What more layers would cost", draw_curve(curve) if curve else None),
        Section("trade-off", "speeds", "Speed on one machine", draw_speeds(speed) if speed else None),
        Section("answers", "answers", "Questions and answers", _answers(artifacts)),
    ]


def _on_layers(artifacts: RunArtifacts, regions: Sequence[Region]) -> list[Section]:
    return [
        Section("layers", "stack", "The stack of layers", _stack(artifacts)),
        Section("layers", "layers", "Which layers matter", _layers(artifacts, regions)),
        Section("layers", "functions", "Which layers matter for which ability", _functions(artifacts)),
        Section("layers", "cuts", "Which layers went, and what each cost", draw_cuts(artifacts)),
    ]


def _on_training(artifacts: RunArtifacts) -> list[Section]:
    rates = artifacts.rates
    return [
        Section("training", "loss", "Training", _loss(artifacts)),
        Section("training", "trained", "What trained", _trained(artifacts)),
        Section("training", "rates", "Learning rates", draw_rate_search(rates) if rates else None),
        Section("training", "costs", "Size, time and memory", _costs(artifacts)),
    ]


def _missing(artifacts: RunArtifacts, stage: str, what: str) -> Missing:
    command = next_step(artifacts, stage)
    how = [f" To do that, {WHERE}: ", tag("code", command, class_="step"), "."] if command else None
    return Missing(tag("p", f"{what}.", how, class_="missing"))


def _stack(artifacts: RunArtifacts) -> Child:
    if not artifacts.num_layers:
        return _missing(artifacts, "select", "No region has been chosen and no layer scored")
    region = artifacts.region
    entries = [("region", f"in the region ({len(region)})")] if region else []
    entries.append(("layer", "outside, frozen" if region else "decoder layer"))
    entries += [("removed", f"removed ({len(artifacts.removed)})")] if artifacts.removed else []
    words_below: list[Child] = ["Each bar is one decoder layer, the input at the bottom. "]
    if artifacts.scores:
        words_below.append(
            f"Colour is importance (higher is kept) on {amount(artifacts.scores.samples, 'calibration sample')}; "
            "a scorer and its parts share one scale, logarithmic where scores span a factor of 5. Hover for values."
        )
    label = f"{artifacts.num_layers} decoder layers; region {list(region.layers) if region else 'not chosen'}"
    shown = picture("layers", label, lambda width: draw_stack(artifacts, width), tag("p", words_below))
    notes: list[Child] = [] if region else [_missing(artifacts, "select", "No region has been chosen")]
    notes += [] if artifacts.scores else [_missing(artifacts, "analyze", "Layers have not been scored")]
    notes += [] if artifacts.prune else [_not_pruned(artifacts)]
    return [key(entries), shown, notes]


def _not_pruned(artifacts: RunArtifacts) -> Html:
    if artifacts.config and not artifacts.config.prune.remove:
        return tag("p", "No layer was to be removed: prune.remove is 0.", class_="missing")
    return _missing(artifacts, "prune", "No layer has been removed")


def _layers(artifacts: RunArtifacts, regions: Sequence[Region]) -> Child:
    """Return the maps, and folded what only a closer look asks for."""
    scores = artifacts.scores
    if not scores or not scores.scorers:
        return None
    spans = draw_span_maps(scores)
    shown: list[Child] = [draw_layer_maps(scores), [tag("h3", "Spans of layers"), spans] if spans else None]
    for title, block in (
        ("Regions of several strategies", draw_side_by_side(regions) if len(regions) > 1 else None),
        ("Agreement between scorers", draw_agreements(scores)),
        ("How stable the rankings are", [tag("p", HALVES, class_="caption"), draw_stability(scores)]),
    ):
        shown.append(tag("details", tag("summary", title), block) if block else None)
    return tag("div", shown, class_="folds")


def _functions(artifacts: RunArtifacts) -> Child:
    """Return the function map; of layers that were not scored by task none: to score them anew undoes later stages."""
    if not artifacts.scores:
        return None
    return draw_function_maps(artifacts.scores)


def _tasks(artifacts: RunArtifacts, kind: str) -> Child:
    rows = rows_of(artifacts, kind)
    if not rows and artifacts.evals:
        return tag("p", f"The test packs of this run hold no {kind} task.", class_="missing")
    if not rows:
        return _missing(artifacts, "evaluate", f"No {kind} task has been evaluated")
    return task_bars(artifacts, kind, rows)


def _text_tasks(artifacts: RunArtifacts) -> Child:
    """Return the text tasks: shares of right answers, then perplexity on its own axis."""
    rows = rows_of(artifacts, "text")
    perplexity = perplexity_bars(artifacts, legend=not rows)
    return [_tasks(artifacts, "text") if rows else None, perplexity] if perplexity else _tasks(artifacts, "text")


def _retention(artifacts: RunArtifacts) -> Child:
    if not artifacts.retention or not artifacts.retention.rows:
        return _missing(artifacts, "evaluate", "Models have not been compared")
    return comparison(artifacts, artifacts.retention)


def _answers(artifacts: RunArtifacts) -> Child:
    if artifacts.config and not artifacts.config.report.examples:
        return tag("p", "Left out: report.examples is 0.", class_="missing")
    return draw_browser(artifacts) or _missing(artifacts, "evaluate", "No model has answered a question")


def _trained(artifacts: RunArtifacts) -> Child:
    if not artifacts.train:
        return _missing(artifacts, "train", "Nothing has been trained")
    first = artifacts.config is not None and artifacts.config.prune.first
    note = "The pruned model was tuned: layers are counted as they are in it." if first else None
    return [tag("p", note, class_="caption") if note else None, draw_trained(artifacts.train)]


def _loss(artifacts: RunArtifacts) -> Child:
    facts_of_run = draw_course(artifacts.train) if artifacts.train else None
    if not artifacts.log:
        missing = _missing(artifacts, "train", "No training log")
        return [facts_of_run, missing] if facts_of_run else missing
    size = steps_a_point(artifacts.log)
    each = "each step" if size == 1 else f"the mean of every {size} steps"
    caption = f"Loss on answer tokens: {each} faint, the running mean over a tenth of the run strong."
    gone = sum(not math.isfinite(step.loss) for step in artifacts.log)
    caption += f" {amount(gone, 'step')} without a finite loss left out." if gone else ""
    if any(step.validation for step in artifacts.log):
        caption += " Held-out samples, which nothing was learned from: a dot each measurement."
    label = f"Training loss over {amount(len(artifacts.log), 'step')}"
    return [facts_of_run, picture("loss", label, lambda width: draw_loss(artifacts.log, width), caption)]


def _costs(artifacts: RunArtifacts) -> Child:
    blocks = [block for block in (draw_models(artifacts), draw_stages(artifacts), draw_surgery(artifacts)) if block]
    return join(blocks) if blocks else None

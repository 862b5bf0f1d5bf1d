"""The verdict in plain words, and the chart below it: what tuning gained, what pruning cost, what it saved."""

from striate.artifacts import Difference
from striate.reporting.charts.drawing.svg import picture
from striate.reporting.charts.verdict_bars import draw_verdict_bars, floor_told
from striate.reporting.data.levels import KINDS, overall_rows, panels_of
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Child, Html, tag
from striate.reporting.sections.headline import headline, quicker, subjects, unchanged, unfinished, unknown_cost
from striate.wording import MINUS, PERPLEXITY, percent, points, score

NOTE = (
    "Dashed lines lead from each bar to the model that is held against it. An outline is what was lost, a strong end "
    "what was gained. "
)
FLOOR = tag(
    "span", tag("i", class_="key floor"), "A mark across a bar is its floor: that model's score with grey pictures. "
)


def draw_verdict(artifacts: RunArtifacts) -> Html:
    """Return the verdict, the chart, and folded every figure with its interval; of a run without comparisons how far
    it is.
    """
    panels = panels_of(artifacts)
    if not panels:
        return tag("div", tag("p", unfinished(artifacts)), headline(artifacts), class_="verdict")
    label = "Score of every model on visual tasks and on text, and what it gained or lost"
    switch = tag("label", tag("input", type="checkbox", class_="ask", autocomplete="off"), " show 95% intervals")
    floors = [floor_told(level) for panel in panels for level in panel.levels if level.floor is not None]
    label = "; ".join([label, *floors])
    note = [NOTE, FLOOR if floors else None, switch]
    chart = picture("verdict", label, lambda width: draw_verdict_bars(panels, width), note)
    figures = tag("details", tag("summary", "Every figure, with its interval"), headline(artifacts))
    return tag("div", tag("div", _sentences(artifacts), class_="words"), chart, figures, class_="verdict")


def _sentences(artifacts: RunArtifacts) -> list[Html]:
    named = subjects(artifacts)
    found = [_sentence(artifacts, label, named[label]) for label in ("tuned", "pruned")]
    unknown, saved = unknown_cost(artifacts), _saved(artifacts)
    return [tag("p", *sentence) for sentence in (*found, [unknown, "."] if unknown else None, saved) if sentence]


def _sentence(artifacts: RunArtifacts, label: str, subject: str) -> list[Child] | None:
    """Return what became of one model on pictures and on text, or None where it was not compared."""
    rows = [row for kind in KINDS for row in overall_rows(artifacts, kind) if row.label == label]
    if not rows:
        return None
    parts: list[Child] = [f"{subject} "]
    for place, row in enumerate(rows):
        parts += [" and " if place else None, tag("b", _change(row)), _kept(row)]
    return [*parts, "."]


def _change(row: Difference) -> str:
    """Return what became of a score, in plain words; whether that can be told is the interval's to say."""
    name = f"the {row.kind} score" if row.metric != PERPLEXITY else "the perplexity of text"
    if unchanged(row):
        return f"made no measurable difference to {name}"
    if row.low is None:
        before, after = (score(value, row.metric) for value in (row.baseline_score, row.score))
        change = f"left {name} at {after}" if before == after else f"moved {name} from {before} to {after}"
        return f"{change} (too few items to tell)"
    amount = points(row.difference, row.metric).lstrip("+" + MINUS)
    return f"{'raised' if row.difference > 0 else 'lowered'} {name} by {amount}"


def _kept(row: Difference) -> str | None:
    """Return what a model keeps of the other's score where it lost some; a share of a weak start says little."""
    lost = row.difference < 0 and not unchanged(row) and row.baseline != "start"
    if not lost or row.retention is None or row.metric == PERPLEXITY:
        return None
    return f" ({percent(row.retention / 100)} of {row.baseline} is left)"


def _saved(artifacts: RunArtifacts) -> list[Child] | None:
    record = artifacts.prune
    if not record or not record.removed or not record.parameters_before:
        return None
    gone = record.parameters_before - record.parameters_after
    smaller = tag("b", f"{percent(gone / record.parameters_before)} smaller")
    speed = quicker(artifacts)
    faster: list[Child] = [" and answers ", tag("b", f"{speed[1] / speed[0]:.2f} times as fast")] if speed else []
    return ["For that the pruned model is ", smaller, *faster, "."]

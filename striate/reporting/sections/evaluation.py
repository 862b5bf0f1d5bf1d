"""Sections on test scores: bars, retention, changed answers, cost against quality."""

from collections.abc import Sequence

from striate.artifacts import Retention
from striate.reporting.charts.bars import Row, draw_bars, rows_of
from striate.reporting.charts.drawing.svg import picture
from striate.reporting.charts.retention_bars import draw_retention_bars, retained_rows
from striate.reporting.charts.scatter import COSTS, Cost, ModelPoint, caption, draw_scatter, points_of
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.chooser import chooser
from striate.reporting.html.markup import Child, Html, tag
from striate.reporting.html.model_names import model_class
from striate.reporting.sections.changes import draw_changes, draw_details
from striate.reporting.sections.retention import draw_retention
from striate.wording import amount

FLOOR = (
    "The floor is the score of the model that is held against, asked with grey pictures in place of its own: what is "
    "kept above it is (score - floor) / (its score - floor). "
)


def key(entries: Sequence[tuple[str, str]]) -> Html:
    """Return a legend of colour patches."""
    return tag("ul", [tag("li", tag("i", class_=f"key {kind}"), name) for kind, name in entries], class_="legend")


def _labels_key(labels: Sequence[str]) -> Html:
    return key([(model_class(label), label) for label in labels])


def task_bars(artifacts: RunArtifacts, kind: str, rows: Sequence[Row]) -> Child:
    """Return the bars of one kind of task, with a legend."""
    label = f"Scores on {len(rows)} {kind} tasks"
    note = "Score in %, whiskers are 95% intervals."
    return [_labels_key(artifacts.labels), picture(f"{kind}-bars", label, lambda width: draw_bars(rows, width), note)]


def perplexity_bars(artifacts: RunArtifacts, legend: bool) -> Child:
    """Return the bars of texts whose likelihood was measured, or nothing where there are none."""
    rows = rows_of(artifacts, "text", "perplexity")
    if not rows:
        return None
    note = "Lower is better: 1 would be a text that the model foresees wholly. Whiskers are 95% intervals."
    label = f"Perplexity of {amount(len(rows), 'text')}, lower is better"
    return [
        tag("h3", "Perplexity", tag("small", "lower is better")),
        _labels_key(artifacts.labels) if legend else None,
        picture("perplexity-bars", label, lambda width: draw_bars(rows, width), note),
    ]


def comparison(artifacts: RunArtifacts, retention: Retention) -> Child:
    """Return what each model keeps of the one that it is held against: bars, what changed, and the table."""
    held = retention.held_rows()
    rows, labels = retained_rows(held), list(dict.fromkeys(row.label for row in held))
    pairs = ", ".join(f"{label} against {retention.reference(label)}" for label in labels)
    about = (
        f"{pairs}: on the same items, paired, a picture with all of its questions. "
        "Rows over all tasks are unweighted means of the task scores; n counts test items. "
        "Retention is the score over that of the other model; for perplexity, the other model's over this one's. "
    )
    if any(row.floor is not None for row in held):
        about += FLOOR
    shown: list[Child] = [tag("p", about + retention.interval, class_="caption"), not_compared(retention)]
    if rows:
        label = f"Retention by task, {pairs}"
        note = "In % of the other model's score, whiskers are 95% intervals. Bars that are cut have two strokes across."
        shown.append(_labels_key(labels))
        shown.append(picture("retention-bars", label, lambda width: draw_retention_bars(rows, width), note))
    changes = draw_changes(held)
    if changes:
        note = "An answer is right or wrong here; the p is McNemar's, exact and two-sided. The last column is the "
        note += "smallest difference that as many items tell from none in 80% of repetitions."
        summary = tag("summary", "Answers that changed")
        shown.append(tag("details", summary, tag("p", note, class_="caption"), changes))
    return [*shown, draw_retention(held), _with_baseline(retention), draw_details(artifacts)]


def not_compared(retention: Retention) -> Html | None:
    """Return which models lack the comparison with what they are held against, or None where none does."""
    missing = [
        f"{label} is not compared with {reference}, which was not evaluated: add {reference} to evaluate.models. "
        for label, reference in retention.not_held().items()
    ]
    return tag("p", missing, class_="missing") if missing else None


def _with_baseline(retention: Retention) -> Html | None:
    """Return the comparisons with the baseline of models that are held against another, folded."""
    rows = [row for row in retention.rows if retention.reference(row.label) != retention.baseline]
    labels = ", ".join(dict.fromkeys(row.label for row in rows))
    summary = tag("summary", f"{labels} beside {retention.baseline}, which is not what pruning cost")
    return tag("details", summary, draw_retention(rows)) if rows else None


def trade_off(artifacts: RunArtifacts) -> Html | None:
    """Return size and speed against quality, with a menu, or None where fewer than two models can be compared."""
    records = [artifacts.evals[label] for label in artifacts.labels]
    choices = [
        (f"{cost.title}, {kind} score", _scatter(points, kind, cost))
        for kind in ("visual", "text")
        for cost in COSTS
        if len(points := points_of(records, kind, cost)) > 1
    ]
    return chooser("trade", "show", choices) if choices else None


def _scatter(points: Sequence[ModelPoint], kind: str, cost: Cost) -> Html:
    name, label = f"{cost.name}-{kind}", f"{kind} score against {cost.title}"
    return picture(name, label, lambda width: draw_scatter(points, kind, cost, width), caption(cost))

"""Every figure of the result with its interval: what tuning gained, what pruning cost, and what it saved."""

from collections.abc import Sequence

from striate.artifacts import Difference, EvalRecord
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Child, Html, tag
from striate.reporting.sections.retention import overall
from striate.wording import (
    amount,
    count,
    interval,
    percent,
    perplexity,
    points,
    sample,
    score,
    signed,
    size,
    span,
    words,
)

ITEMS_TO_TIME = 30


def headline(artifacts: RunArtifacts) -> Html:
    """Return the result, a sentence each, with n and 95% intervals; nothing of a run without comparisons."""
    missing = unknown_cost(artifacts)
    told = [_told(artifacts, label, subject) for label, subject in subjects(artifacts).items()]
    sentences = [*told, missing, _saved(artifacts)]
    return tag("div", [tag("p", sentence, ".") for sentence in sentences if sentence], class_="headline")


def subjects(artifacts: RunArtifacts) -> dict[str, str]:
    """Return what was done to make each of the run's models, as the beginning of a sentence, by its label."""
    region = artifacts.train.trainable.region if artifacts.train else artifacts.region
    tuning = f"Tuning {len(region)} of {amount(region.num_layers, 'layer')}" if region else "Tuning"
    cut, first = _cut(artifacts), _first(artifacts)
    healed = " and healing" if artifacts.config and artifacts.config.heals else ""
    return {
        "tuned": tuning + (" after pruning" if first else ""),
        "pruned": cut + healed,
        "unhealed": f"{cut} alone",
    }


def _cut(artifacts: RunArtifacts) -> str:
    named = f"Removing {amount(len(artifacts.removed), 'layer')}" if artifacts.prune else "Pruning"
    return f"{named} before tuning" if _first(artifacts) else named


def _first(artifacts: RunArtifacts) -> bool:
    """Return whether the model was pruned before it was tuned."""
    return artifacts.config is not None and artifacts.config.prune.first


def unknown_cost(artifacts: RunArtifacts) -> Html | None:
    """Return that pruning's cost is open, where the tuned model was not evaluated, or None."""
    missing = artifacts.retention.not_held().get("pruned") if artifacts.retention else None
    if not missing:
        return None
    cut = _cut(artifacts)
    text = f"What {cut[0].lower()}{cut[1:]} cost is not known: {missing} was not evaluated (evaluate.models)"
    return tag("b", text)


def _told(artifacts: RunArtifacts, label: str, subject: str) -> Child:
    """Return what became of the visual score and of text in one model, as a sentence about `subject`."""
    row = overall(artifacts, label, "visual")
    parts = [_visual(subject, row) if row else None, _text(artifacts, label)]
    shown = [part for part in parts if part]
    if not row and shown:
        shown[0] = [f"{subject}: ", shown[0]]
    return [shown[0], *(piece for part in shown[1:] for piece in ("; ", part))] if shown else None


def _visual(subject: str, row: Difference) -> Child:
    verb = "leaves the visual score at" if unchanged(row) else "takes the visual score from"
    values = f"{score(row.baseline_score)} to {score(row.score)}"
    if unchanged(row):
        values = f"{score(row.score)}, {row.baseline} {score(row.baseline_score)}"
    return [f"{subject} {verb} ", tag("b", values), _change(row)]


def _text(artifacts: RunArtifacts, label: str) -> Child:
    row = overall(artifacts, label, "text")
    if not row:
        return _perplexity(artifacts, label)
    verdict = f"text {'gains' if row.difference > 0 else 'loses'}"
    if row.low is None:
        verdict = f"text goes from {score(row.baseline_score)} to {score(row.score)}"
    elif unchanged(row):
        verdict = "text shows no measurable change"
    return [tag("b", verdict), _change(row)]


def _perplexity(artifacts: RunArtifacts, label: str) -> Child:
    """Return what became of the perplexity of text, where that is the only text measure."""
    held = artifacts.retention.of(label) if artifacts.retention else ()
    rows = [row for row in held if row.metric == "perplexity"]
    if len(rows) != 1:
        return None
    (row,) = rows
    values = tag("b", f"{perplexity(row.baseline_score)} to {perplexity(row.score)}")
    return ["perplexity of text goes from ", values, _change(row, "lower is better, ")]


def _change(row: Difference, note: str = "") -> Html:
    told = interval(span(row.low, row.high, row.metric), row.no_interval)
    change = f" ({points(row.difference, row.metric)} against {row.baseline}, {note}{told}, {sample(row.n)})"
    return tag("span", change, class_="interval")


def unchanged(row: Difference) -> bool:
    """Return whether the interval of the difference holds nought."""
    return row.low is not None and row.high is not None and row.low <= 0 <= row.high


def _saved(artifacts: RunArtifacts) -> Child:
    """Return how much smaller the pruned model is than the one that was pruned, and how much sooner it answers."""
    record = artifacts.prune
    if not record or not record.removed or not record.parameters_before:
        return None
    gone = record.parameters_before - record.parameters_after
    saved: list[Child] = [
        "It saves ",
        tag("b", f"{percent(gone / record.parameters_before)} of the parameters"),
        f" ({count(record.parameters_before)} to {count(record.parameters_after)})",
    ]
    if record.bytes_before:
        saved.append(f" and {size(record.bytes_before - record.bytes_after)} of {size(record.bytes_before)}")
    speeds = quicker(artifacts)
    if not speeds:
        return saved
    told = f"{signed(100 * (speeds[1] / speeds[0] - 1), 0)}%, measured once"
    return [saved, f", and answers {speeds[1]:.1f} instead of {speeds[0]:.1f} test items a second ({told})"]


def quicker(artifacts: RunArtifacts) -> tuple[float, float] | None:
    """Return how many items a second the whole and the pruned model answered, where both were asked all of them,
    enough, in one sitting.
    """
    whole = "start" if _first(artifacts) else "tuned"
    asked: Sequence[EvalRecord] = [artifacts.evals[label] for label in (whole, "pruned") if label in artifacts.evals]
    speeds = [
        record.asking.items_per_second
        for record in asked
        if record.asking and not record.asking.resumed and record.asking.items >= ITEMS_TO_TIME
    ]
    return (speeds[0], speeds[1]) if len(speeds) == 2 and min(speeds) else None


def unfinished(artifacts: RunArtifacts) -> str:
    """Return how far a run without comparisons is."""
    done = [
        ("scored its layers", artifacts.scores),
        ("chosen a region", artifacts.region),
        ("trained", artifacts.train),
        ("pruned", artifacts.prune),
        ("evaluated models", artifacts.evals),
    ]
    stages = [name for name, artifact in done if artifact]
    state = f"This run has {', '.join(stages)}" if stages else "This run has a config and no result yet"
    return f"{state}; models have not been compared yet.{_peaks(artifacts)}"


def _peaks(artifacts: RunArtifacts) -> str:
    """Return where the first scorer peaks, with its interval, or nothing where that was not measured."""
    entry = next((entry for entry in artifacts.scores.scorers if entry.peak), None) if artifacts.scores else None
    if entry is None or entry.peak is None:
        return ""
    told = f" By {words(entry.scorer)} layer {entry.peak.layer} matters most (95% interval {entry.peak.low} to "
    return f"{told}{entry.peak.high}, {amount(entry.samples, 'sample')})."

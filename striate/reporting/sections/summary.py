"""The result in one sentence, and the few figures below it."""

from striate.artifacts import Difference
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Child, Html, tag
from striate.reporting.html.wording import amount, count, interval, percent, points, sample, score, span, words
from striate.reporting.sections.retention import overall


def headline(artifacts: RunArtifacts) -> Html:
    """Return the result in one sentence, with n and 95% intervals."""
    parts = [part for part in (_visual(artifacts), _text(artifacts), _pruned(artifacts)) if part]
    if not parts:
        return tag("p", _unfinished(artifacts), class_="headline")
    sentence: list[Child] = []
    for place, part in enumerate(parts):
        sentence += ["; " if place else "", part]
    return tag("p", sentence, ".", class_="headline")


def _change(row: Difference) -> str:
    return f" ({points(row.difference)}, {_interval(row)}, {sample(row.n)})"


def _interval(row: Difference) -> str:
    return interval(span(row.low, row.high, row.metric), row.no_interval)


def _unchanged(row: Difference) -> bool:
    """Return whether the interval of the difference holds nought."""
    return row.low is not None and row.high is not None and row.low <= 0 <= row.high


def _main(artifacts: RunArtifacts, kind: str) -> Difference | None:
    row = overall(artifacts, "tuned", kind)
    return row if row and row.baseline == "start" else None


def _visual(artifacts: RunArtifacts) -> Child:
    row = _main(artifacts, "visual")
    if not row:
        return None
    subject = "Tuning"
    if artifacts.region:
        subject = f"Tuning {len(artifacts.region)} of {amount(artifacts.region.num_layers, 'layer')}"
    values = tag("b", f"{score(row.baseline_score)} to {score(row.score)}")
    verb = "leaves the visual score at" if _unchanged(row) else "takes the visual score from"
    if _unchanged(row):
        values = tag("b", f"{score(row.score)}, start {score(row.baseline_score)}")
    return [f"{subject} {verb} ", values, tag("span", _change(row), class_="interval")]


def _text(artifacts: RunArtifacts) -> Child:
    row = _main(artifacts, "text")
    if not row:
        return _perplexity(artifacts)
    verdict = f"text {'gains' if row.difference > 0 else 'loses'}"
    if row.low is None:
        verdict = f"text goes from {score(row.baseline_score)} to {score(row.score)}"
    elif _unchanged(row):
        verdict = "text shows no measurable change"
    return [tag("b", verdict), tag("span", _change(row), class_="interval")]


def _perplexity(artifacts: RunArtifacts) -> Child:
    """Return what tuning did to the perplexity of text, where that is the only text measure."""
    rows = artifacts.retention.rows if artifacts.retention else ()
    rows = tuple(row for row in rows if row.metric == "perplexity" and (row.label, row.baseline) == ("tuned", "start"))
    if len(rows) != 1:
        return None
    (row,) = rows
    change = f"{points(row.difference, row.metric)}, lower is better, {_interval(row)}"
    values = tag("b", f"{row.baseline_score:.3f} to {row.score:.3f} nats a token")
    return ["text goes from ", values, tag("span", f" ({change}, {sample(row.n)})", class_="interval")]


def _pruned(artifacts: RunArtifacts) -> Child:
    row = overall(artifacts, "pruned", "visual")
    if not row:
        return None
    subject = f"with {amount(len(artifacts.removed), 'layer')} removed" if artifacts.prune else "pruned"
    against = f"{points(row.difference)} against {row.baseline}, {_interval(row)}, {sample(row.n)}"
    return [
        f"{subject} the visual score is ",
        tag("b", score(row.score)),
        tag("span", f" ({against})", class_="interval"),
    ]


def _unfinished(artifacts: RunArtifacts) -> str:
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


def draw_notes(artifacts: RunArtifacts) -> Html | None:
    """Return what is odd about the data that the figures rest on, a line each."""
    lines = artifacts.notes.lines if artifacts.notes else ()
    return tag("ul", [tag("li", line) for line in lines], class_="missing notes") if lines else None


def draw_tiles(artifacts: RunArtifacts) -> Html | None:
    """Return the few figures that people quote: a row for the tuned model, and one for the pruned model."""
    tuned = [*_trained_tiles(artifacts), *_score_tiles(artifacts, "tuned")]
    pruned = [*_size_tiles(artifacts), *_score_tiles(artifacts, "pruned")]
    rows = [tag("div", tiles, class_="tiles") for tiles in (tuned, pruned) if tiles]
    return tag("div", rows, class_="figures") if rows else None


def _tile(name: str, value: Child, note: str, kind: str = "") -> Html:
    parts = tag("p", name, class_="name"), tag("p", value, class_="value"), tag("p", note, class_="under")
    return tag("div", *parts, class_=f"tile {kind}".strip())


def _trained_tiles(artifacts: RunArtifacts) -> list[Html]:
    if not artifacts.train:
        return []
    counted = artifacts.train.trainable
    note = f"{count(counted.trainable)} of {count(counted.total)}"
    return [_tile("parameters that trained", percent(counted.trainable / (counted.total or 1)), note, "region")]


def _score_tiles(artifacts: RunArtifacts, label: str) -> list[Html]:
    rows = [(kind, overall(artifacts, label, kind)) for kind in ("visual", "text")]
    return [tile for kind, row in rows if row for tile in _score_tile(kind, label, row)]


def _score_tile(kind: str, label: str, row: Difference) -> list[Html]:
    """Return one model's figure on one kind of tasks; a share of a weak start would say little."""
    if row.baseline == "start":
        note = f"start {score(row.baseline_score)}, {points(row.difference)}, {sample(row.n)}"
        return [_tile(f"{kind} score, {label}", score(row.score), note, label)]
    if row.retention is None:
        return []
    return [_tile(f"{kind} retention, {label}", percent(row.retention / 100), _retention_note(row), label)]


def _retention_note(row: Difference) -> str:
    low, high = row.retention_low, row.retention_high
    kept = "" if low is None or high is None else f"{low:.1f} to {high:.1f}"
    return f"{interval(kept, row.no_interval)}, {sample(row.n)}"


def _size_tiles(artifacts: RunArtifacts) -> list[Html]:
    if not artifacts.prune or not artifacts.prune.parameters_before:
        return []
    before, after = artifacts.prune.parameters_before, artifacts.prune.parameters_after
    note = f"{count(before)} → {count(after)}"
    return [_tile("parameters pruned away", percent((before - after) / before), note, "pruned")]

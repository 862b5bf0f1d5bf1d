"""The few figures below the result, and what is odd about the data."""

from striate.artifacts import Difference
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Child, Html, tag
from striate.reporting.html.wording import count, interval, percent, points, sample, score
from striate.reporting.sections.retention import overall


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
    note = f"of {row.baseline}, {_retention_note(row)}"
    return [_tile(f"{kind} score kept, {label}", percent(row.retention / 100), note, label)]


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

"""How good each model is on visual tasks and on text, and how far it stands from what it is held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from striate.artifacts import Difference, Kind
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.wording import PERPLEXITY

KINDS: tuple[Kind, ...] = ("visual", "text")


@dataclass(frozen=True)
class Level:
    """One model's score, in % or as perplexity, with the comparison that says how it came there.

    Attributes:
        row: the comparison with the model that this one is held against; None of a model that is held against none.
        start, low, high: the other model's score, and where this model's may lie by the interval of the difference.
        floor: this model's score without its pictures, where it was asked so.
    """

    label: str
    value: float
    row: Difference | None = None
    start: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Panel:
    """The models' levels on one kind of task."""

    kind: Kind
    perplexity: bool
    levels: tuple[Level, ...]

    def of(self, label: str) -> Level | None:
        """Return the level of the model called `label`, or None where it has none."""
        return next((level for level in self.levels if level.label == label), None)


def panels_of(artifacts: RunArtifacts) -> list[Panel]:
    """Return a panel a kind of task on which models were compared."""
    panels = [_panel(kind, rows) for kind in KINDS if (rows := overall_rows(artifacts, kind))]
    return [_ordered(panel, artifacts.labels) for panel in panels]


def overall_rows(artifacts: RunArtifacts, kind: Kind) -> list[Difference]:
    """Return each model's comparison over all tasks of one kind; of text that is only read, its perplexity."""
    retention = artifacts.retention
    if not retention:
        return []
    held = retention.held_rows()
    whole = [row for row in held if row.pack == "*" and row.task == kind]
    if whole or kind == "visual":
        return whole
    read = [row for row in held if row.metric == PERPLEXITY]
    # Several texts have no common figure.
    return read if len({(row.pack, row.task) for row in read}) == 1 else []


def _panel(kind: Kind, rows: Sequence[Difference]) -> Panel:
    levels = [_level(row) for row in rows]
    named = {level.label for level in levels}
    bases = {row.baseline: row.baseline_score for row in rows if row.baseline not in named}
    first = [Level(label, _value(score, rows[0].metric)) for label, score in bases.items()]
    floors = {row.baseline: 100 * row.floor for row in rows if row.floor is not None}
    return Panel(
        kind,
        rows[0].metric == PERPLEXITY,
        tuple(replace(level, floor=floors.get(level.label)) for level in (*first, *levels)),
    )


def _level(row: Difference) -> Level:
    ends = [None if end is None else _value(row.baseline_score + end, row.metric) for end in (row.low, row.high)]
    return Level(row.label, _value(row.score, row.metric), row, _value(row.baseline_score, row.metric), *ends)


def _value(score: float, metric: str) -> float:
    return math.exp(min(score, 700.0)) if metric == PERPLEXITY else 100 * score


def _ordered(panel: Panel, labels: Sequence[str]) -> Panel:
    """Return the panel with its models in the order of their making; those without a record come last."""
    places = {label: place for place, label in enumerate(labels)}
    levels = sorted(panel.levels, key=lambda level: places.get(level.label, len(places)))
    return Panel(panel.kind, panel.perplexity, tuple(levels))

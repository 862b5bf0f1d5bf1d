"""A curve as a CSV table: a row a model, scores as shares, intervals beside them. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from striate.artifacts import AnswerForm, Curve, CurvePoint, CurveScore, Difference, Kind
from striate.storage.csv_export import csv_text

KINDS: tuple[Kind, ...] = ("visual", "text")
ANSWERS: tuple[AnswerForm, ...] = ("all", "choice", "written", "perplexity")
_SIZE = ("removed", "layers", "healed", "parameters", "bytes")
_SPEED = (
    "prefill_seconds",
    "prefill_low",
    "prefill_high",
    "prefill_times",
    "decode_tokens_per_second",
    "decode_low",
    "decode_high",
    "decode_times",
    "peak_memory_gib",
)
_SCORE = ("n", "score")
_AGAINST = ("kept", "kept_low", "kept_high", "difference", "difference_low", "difference_high")


def curve_csv(curve: Curve) -> str:
    """Return the points of a curve as CSV; what was not measured is empty, and kept shares are in %.

    `visual_choice_kept` is what is kept of the tuned model's score on visual tasks with choices, `..._of_start` the
    same of the start's. `prefill_times` is how many times as fast as the tuned model a prompt is read.
    """
    groups = [group for group in product(KINDS, ANSWERS) if any(point.of(*group) for point in curve.points)]
    names = [_prefix(*group) for group in groups]
    header = [
        *_SIZE,
        *_SPEED,
        *(
            f"{name}_{column}"
            for name in names
            for column in (*_SCORE, *_AGAINST, *(f"{c}_of_start" for c in _AGAINST))
        ),
    ]
    return csv_text(header, [[*_row(point), *_scores(point, groups)] for point in curve.points])


def _prefix(kind: Kind, answers: AnswerForm) -> str:
    return kind if answers == "all" else f"{kind}_{answers}"


def _row(point: CurvePoint) -> Iterator[Any]:
    yield from (point.count, " ".join(map(str, point.removed)), point.healed, point.parameters, point.bytes)
    if point.speed is None:
        yield from [""] * len(_SPEED)
        return
    speed = point.speed.smaller
    for spread, times in ((speed.prefill_seconds, point.prefill), (speed.decode_tokens_per_second, point.decode)):
        yield from (spread.median, spread.low, spread.high, times)
    yield "" if speed.peak_memory_gib is None else speed.peak_memory_gib


def _scores(point: CurvePoint, groups: list[tuple[Kind, AnswerForm]]) -> Iterator[Any]:
    for group in groups:
        score: CurveScore | None = point.of(*group)
        yield from (score.n, score.score) if score else ("", "")
        yield from _against(score.tuned if score else None)
        yield from _against(score.start if score else None)


def _against(row: Difference | None) -> list[Any]:
    if row is None:
        return [""] * len(_AGAINST)
    values = (row.retention, row.retention_low, row.retention_high, row.difference, row.low, row.high)
    return ["" if value is None else value for value in values]

"""The words of a sweep's table, on the page and in the terminal: its scores, and what its names and marks mean."""

from __future__ import annotations

from collections.abc import Sequence

from striate.artifacts import SweepRecord, SweptGroup, SweptScore
from striate.reporting.sweep_rows import names_told
from striate.wording import perplexity

COMPARED = "= 100%"
ABOVE_FLOOR = "above the floor"
CANT_TELL = "can't tell"


def score_told(score: SweptScore | None) -> str:
    """Return a score: its mean, and its spread over seeds where there is one."""
    if score is None:
        return ""
    return f"{score.mean:.1f}" + ("" if score.spread is None else f" ± {score.spread:.1f}")


def kept_told(score: SweptScore | None) -> str:
    """Return what a score keeps, with its interval."""
    if score is None or score.kept is None:
        return ""
    return _kept(score.kept, score.low, score.high)


def _kept(share: float, low: float | None, high: float | None) -> str:
    return f"{share:.1f}%" + ("" if low is None or high is None else f" ({low:.1f} to {high:.1f})")


def has_floor(record: SweepRecord) -> bool:
    """Return whether the table has a column of what is kept above the floor."""
    return any(group.visual and group.visual.floor is not None for group in record.groups)


def above_floor_told(score: SweptScore | None) -> str:
    """Return what a score keeps above the floor, with its interval, or that it can't be told."""
    if score is None or score.floor is None:
        return ""
    if score.above_floor is None:
        return CANT_TELL
    return _kept(score.above_floor, score.above_floor_low, score.above_floor_high)


def score_heads(record: SweepRecord) -> list[str]:
    """Return the heads of `scores_told`."""
    return ["visual", "kept", *([ABOVE_FLOOR] if has_floor(record) else []), "text", "kept"]


def scores_told(group: SweptGroup, heads: Sequence[str]) -> list[str]:
    """Return what a group reached and keeps, a cell for each of `score_heads`."""
    above = [above_floor_told(group.visual)] if ABOVE_FLOOR in heads else []
    return [score_told(group.visual), kept_told(group.visual), *above, text_told(group), kept_told(group.text)]


def text_told(group: SweptGroup) -> str:
    """Return the score of a group on text; beside it, or alone, the perplexity of plain text."""
    plain = "" if group.nats is None else f"perplexity {perplexity(group.nats)}"
    return ", ".join(filter(None, (score_told(group.text), plain)))


def legend(record: SweepRecord, best: str) -> list[str]:
    """Return what the names and marks in the table mean, of those that stand there; `best` is that of chosen runs."""
    scores = [score for group in record.groups for score in (group.visual, group.text) if score]
    compared = next((group for group in record.groups if group.compared), None)
    against = [score for score in (compared.visual, compared.text) if score] if compared else []
    floors = [score for score in scores if score.floor is not None]
    blind = f"{floors[0].floor:.1f}" if floors else ""
    why = next((score.no_above_floor for score in floors if score.above_floor is None), "")
    told = {
        f"{best}: the best by {record.chosen_by} on held-out samples": any(group.best for group in record.groups),
        f"{COMPARED}: what the others are held against": compared is not None,
        "±: standard deviation over seeds": any(score.spread is not None for score in scores),
        "in brackets: 95% interval over items": any(score.low is not None for score in scores),
        "of a score of 0 nothing can be kept": any(score.mean == 0 for score in against),
        f"{ABOVE_FLOOR}: what is kept of the visual score over {blind}, which {COMPARED} has with grey pictures": bool(
            floors
        ),
        f"{CANT_TELL}: {why}": bool(why),
    }
    return [*names_told(record), *(line for line, stands in told.items() if stands)]

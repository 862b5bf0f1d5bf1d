"""How many layers to remove, by a curve, in words with intervals. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from striate.artifacts import CurvePoint, Difference, Kind, Recommendation, Spread
from striate.wording import amount, points, span

# What a smaller model should keep of the tuned one's score, in %, where the run has no conditions of its own.
KEEPS: Mapping[Kind, float] = {"visual": 98.0, "text": 98.0}


def recommend(
    points: Sequence[CurvePoint], num_layers: int, keeps: Mapping[Kind, float] = KEEPS
) -> Recommendation | None:
    """Return the largest count that keeps as much as `keeps` says, together with all smaller ones that were tried.

    Healed models are judged where there are some. Retention itself is held against the bounds, as a gate does; the
    words give its interval. None where no kind of `keeps` was measured on a smaller model.

    Args:
        points: of the curve, by count.
        num_layers: of the tuned model.
        keeps: the least retention of the tuned model, in %, by kind.
    """
    healed = any(point.healed for point in points)
    tried = sorted((point for point in points if point.count and point.healed == healed), key=lambda point: point.count)
    bounds: dict[Kind, float] = {kind: least for kind, least in keeps.items() if any(_kept(p, kind) for p in tried)}
    if not bounds:
        return None
    good: CurvePoint | None = None
    beyond: CurvePoint | None = None
    for point in tried:
        if not _keeps(point, bounds):
            beyond = point
            break
        good = point
    text = " ".join([*_chosen(good, num_layers, bounds), *_next(good, beyond, num_layers, bounds)])
    return Recommendation(keeps=bounds, count=good.count if good else 0, healed=healed and good is not None, text=text)


def told_share(row: Difference) -> str:
    """Return retention with its interval: `98.7% (97.9 to 99.4)`."""
    if row.retention is None:
        return "no measurable share"
    low, high = row.retention_low, row.retention_high
    reach = f"no 95% interval: {row.no_interval}" if low is None or high is None else f"{low:.1f} to {high:.1f}"
    return f"{row.retention:.1f}% ({reach})"


def told_speed(point: CurvePoint) -> str:
    """Return how much faster a point is than the tuned model, or nothing where that was not measured."""
    prefill, decode = point.prefill_times, point.decode_times
    if prefill is None or decode is None:
        return ""
    return f"reads a prompt {_told_times(prefill)} and writes {_told_times(decode)} times as fast"


def _told_times(times: Spread) -> str:
    """Return how many times as fast, with the least and the most of the measurements."""
    return f"{times.median:.2f} ({times.low:.2f} to {times.high:.2f})"


def _kept(point: CurvePoint, kind: Kind) -> Difference | None:
    score = point.of(kind)
    return score.tuned if score else None


def _keeps(point: CurvePoint, bounds: Mapping[Kind, float]) -> bool:
    rows = {kind: _kept(point, kind) for kind in bounds}
    return all(row and row.retention is not None and row.retention >= bounds[kind] for kind, row in rows.items())


def _chosen(good: CurvePoint | None, num_layers: int, bounds: Mapping[Kind, float]) -> list[str]:
    """Return the sentence about what is recommended, and what the sample leaves open of it."""
    asked = " and ".join(f"{least:g}% of the {kind} score" for kind, least in bounds.items())
    if good is None:
        return [f"Remove none: no count that was tried keeps {asked}."]
    healed = " and healing" if good.healed else ""
    parts = [f"Removing {good.count} of {amount(num_layers, 'layer')}{healed} keeps {_shares(good, bounds)}"]
    parts += [told_speed(good)] if good.speed else []
    sentences = [f"{', and '.join(parts)}; asked were {asked}."]
    rows = {kind: row for kind in bounds if (row := _kept(good, kind))}
    unknown = [kind for kind, row in rows.items() if row.retention_low is None]
    below = [kind for kind, row in rows.items() if row.retention_low is not None and row.retention_low < bounds[kind]]
    if below:
        sentences.append(f"The interval of the {' and the '.join(below)} score reaches below that.")
    if unknown:
        sentences.append(f"Whether the {' and the '.join(unknown)} score does on other items no interval tells.")
    nats = good.of("text", "perplexity")
    if nats and nats.tuned:
        row = nats.tuned
        change, reach = points(row.difference, row.metric), span(row.low, row.high, row.metric) or row.no_interval
        sentences.append(f"The perplexity of text changes by {change} ({reach}), less being better.")
    return sentences


def _next(
    good: CurvePoint | None, beyond: CurvePoint | None, num_layers: int, bounds: Mapping[Kind, float]
) -> list[str]:
    """Return the sentence about the first count that keeps too little."""
    if beyond is None:
        return ["No larger count was tried."] if good else []
    healed = " and healing" if beyond.healed else ""
    speed = f", and {told_speed(beyond)}" if beyond.speed else ""
    start = f"Removing {beyond.count}{healed} keeps" if good is None else f"{beyond.count} would keep"
    return [f"{start} {_shares(beyond, bounds)}{speed if good is None else ''}."]


def _shares(point: CurvePoint, bounds: Mapping[Kind, float]) -> str:
    rows = [(kind, _kept(point, kind)) for kind in bounds]
    return " and ".join(f"{told_share(row)} of the {kind} score" for kind, row in rows if row)

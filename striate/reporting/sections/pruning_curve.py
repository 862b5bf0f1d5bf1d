"""What is kept as layers go: what to remove in words, the picture against speed and size, and the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from striate.artifacts import AnswerForm, Curve, CurvePoint, CurveScore, Difference, Kind
from striate.reporting.charts.drawing.svg import picture
from striate.reporting.charts.pareto import ParetoLine, ParetoPoint, draw_pareto
from striate.reporting.html.chooser import chooser
from striate.reporting.html.markup import Child, Html, tag
from striate.reporting.html.tables import Cell, figures, table
from striate.wording import amount, count, gibibytes, interval, percent, perplexity, points, sample, span

AS_CUT, HEALED = "s2", "s1"
KINDS: tuple[Kind, ...] = ("visual", "text")
FORMS: tuple[AnswerForm, ...] = ("choice", "written")


@dataclass(frozen=True)
class Saving:
    """What the horizontal axis shows of a point."""

    name: str
    title: str
    of: Callable[[CurvePoint, CurvePoint], float]


SAVINGS = (
    Saving("decode", "tokens written a second, times the tuned model's", lambda point, whole: point.decode),
    Saving("prefill", "speed of reading a prompt, times the tuned model's", lambda point, whole: point.prefill),
    Saving("size", "parameters, % of the tuned model's", lambda point, whole: _share(point, whole)),
)
LAYERS = Saving("layers", "layers removed", lambda point, whole: float(point.count))


def _share(point: CurvePoint, whole: CurvePoint) -> float:
    return 100 * point.parameters / whole.parameters


def draw_curve(curve: Curve) -> list[Child]:
    """Return the section: what is recommended, the picture with its menu, and a table of all points."""
    advice = tag("p", tag("b", curve.recommendation.text)) if curve.recommendation else None
    return [advice, tag("p", _about(curve), class_="caption"), _pictures(curve), _table(curve), _against_start(curve)]


def _about(curve: Curve) -> str:
    healed = ", without and with healing" if curve.healed else ", not healed"
    stands_in = curve.compensate != "none"
    changed = f"; kept layers are changed to stand in for them ({curve.compensate})" if stands_in else ""
    order = f" Layers go in this order: {', '.join(map(str, curve.order))}." if curve.order else ""
    return (
        f"Every model lacks the given number of {amount(curve.region.num_layers, 'layer')}, ranked by {curve.scorer}"
        f"{changed}{healed}, and is held against the tuned model on the same items, paired.{order} Speeds are medians, "
        f"the tuned model's measured right before each, with the least and the most that the measurements of both "
        f"leave open. Intervals: {curve.interval}"
    )


def _pictures(curve: Curve) -> Html | None:
    choices: list[tuple[str, Child]] = []
    for kind in KINDS:
        for saving in (*SAVINGS, LAYERS):
            lines = [_line(curve, kind, "all", saving, healed) for healed in _healings(curve)]
            choices += _choice(f"{kind} score against {saving.title}", f"{kind}-{saving.name}", lines, saving)
    for kind in KINDS:
        lines = [_form(curve, kind, answers, shade) for answers, shade in zip(FORMS, ("s3", "s4"), strict=True)]
        if all(line.points for line in lines):
            choices += _choice(f"{kind} score, choices and written answers apart", f"{kind}-answers", lines, LAYERS)
    return chooser("curve", "show", choices) if choices else None


def _choice(title: str, name: str, lines: Sequence[ParetoLine], saving: Saving) -> list[tuple[str, Child]]:
    """Return a picture with its title and legend; nothing where fewer than two points are known."""
    lines = [line for line in lines if line.points]
    if sum(len(line.points) for line in lines) < 2:
        return []
    better = "left" if saving.name == "size" else "right"
    note = (
        "% kept of the tuned model's score, the strong line is 100%; two strokes across an axis: it does not begin "
        f"at 0. Numbers are layers removed, whiskers 95% intervals; better is up and to the {better}."
    )
    legend = tag("ul", [tag("li", tag("i", class_=f"key {line.shade}"), line.label) for line in lines], class_="legend")
    drawing = picture(f"curve-{name}", title, lambda width: draw_pareto(lines, saving.title, width), note)
    return [(title, [legend, drawing])]


def _healings(curve: Curve) -> tuple[bool, ...]:
    return tuple(sorted({point.healed for point in curve.points if point.count}))


def _line(curve: Curve, kind: Kind, answers: AnswerForm, saving: Saving, healed: bool) -> ParetoLine:
    label, shade = ("healed", HEALED) if healed else ("as cut", AS_CUT)
    return ParetoLine(label, shade, _points(curve, kind, answers, saving, healed))


def _form(curve: Curve, kind: Kind, answers: AnswerForm, shade: str) -> ParetoLine:
    healed = curve.healed
    label = ("one of a few answers is chosen" if answers == "choice" else "the answer is written") + (
        ", healed" if healed else ""
    )
    return ParetoLine(label, shade, _points(curve, kind, answers, LAYERS, healed))


def _points(curve: Curve, kind: Kind, answers: AnswerForm, saving: Saving, healed: bool) -> tuple[ParetoPoint, ...]:
    whole, found = curve.points[0], []
    for point in curve.points:
        score, x = point.of(kind, answers), saving.of(point, whole)
        if score is None or point.healed != healed or not point.count:
            continue
        row = score.tuned
        if row is None or row.retention is None or (x <= 0 and saving is not LAYERS):
            continue
        tip = f"{amount(point.count, 'layer')} removed: {_told(row)}, {sample(row.n)}"
        found.append(ParetoPoint(str(point.count), x, row.retention, row.retention_low, row.retention_high, tip))
    return tuple(found)


def _told(row: Difference) -> str:
    low, high = row.retention_low, row.retention_high
    reach = "" if low is None or high is None else f"{low:.1f} to {high:.1f}"
    return f"{percent((row.retention or 0) / 100)} kept, {interval(reach, row.no_interval)}"


def _table(curve: Curve) -> Html:
    groups = [(kind, form) for kind in KINDS for form in curve.forms(kind)]
    names = [kind if form == "all" else f"{kind}, {form}" for kind, form in groups]
    heads = ["removed", *names, "parameters", "weights", "prefill", "decode", "peak memory"]
    rows = []
    for point in curve.points:
        scores = [_score(point.of(kind, form)) for kind, form in groups]
        rows.append([Cell(_name(point), head=True), *figures(*scores, *_costs(point))])
    chosen = [curve.recommends(point) for point in curve.points]
    return table(heads, rows, ["overall" if one else "" for one in chosen])


def _against_start(curve: Curve) -> Html | None:
    """Return the folded table of differences from the start, or nothing where that was not asked."""
    kinds = [row for row in curve.start if row.answers == "all"]
    if not kinds:
        return None
    rows = []
    for point in curve.points:
        scores = [score.start if score else None for score in (point.of(row.kind) for row in kinds)]
        rows.append([Cell(_name(point), head=True), *figures(*map(_gained, scores))])
    heads = ["removed", *(f"{row.kind}, start {percent(row.score)}" for row in kinds)]
    return tag("details", tag("summary", "Against the start"), table(heads, rows))


def _gained(row: Difference | None) -> str:
    return f"{points(row.difference)}, {interval(span(row.low, row.high), row.no_interval)}" if row else "–"


def _name(point: CurvePoint) -> str:
    if not point.count:
        return "none (tuned)"
    return f"{point.count}, healed" if point.healed else str(point.count)


def _score(score: CurveScore | None) -> str:
    """Return the score, and under it what is kept of the tuned model's with its interval."""
    if score is None:
        return "–"
    if score.answers == "perplexity":
        change = f" ({points(score.tuned.difference, 'perplexity')})" if score.tuned else ""
        return f"{perplexity(score.score)}{change}"
    if score.tuned is None or score.tuned.retention is None:
        return f"score {percent(score.score)}"
    row = score.tuned
    reach = "" if row.retention_low is None else f" ({row.retention_low:.1f} to {row.retention_high:.1f})"
    return f"{percent((row.retention or 0) / 100)}{reach}"


def _costs(point: CurvePoint) -> list[str]:
    speed = point.speed
    peak = speed.smaller.peak_memory_gib if speed else None
    spreads = (point.prefill_times, point.decode_times)
    times = [f"{row.median:.2f} × ({row.low:.2f} to {row.high:.2f})" if row else "–" for row in spreads]
    weights = gibibytes(point.bytes / 2**30)
    return [count(point.parameters), weights, *times, "–" if peak is None else gibibytes(peak)]

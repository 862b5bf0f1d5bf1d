"""A curve on the terminal: a row a model, what it keeps of the tuned one, its size and its speed."""

from rich.table import Table

from striate.artifacts import AnswerForm, Curve, CurvePoint, CurveScore, Kind
from striate.wording import PERPLEXITY, perplexity

_KINDS: tuple[Kind, ...] = ("visual", "text")


def curve_table(curve: Curve) -> Table:
    """Return the points of a curve: % kept of the tuned model's scores with 95% intervals, parameters and speed."""
    groups = [(kind, answers) for kind in _KINDS for answers in curve.forms(kind)]
    table = Table(title=_title(curve), title_justify="left", box=None, pad_edge=False)
    scored = [kind if form == "all" else f"{kind}, {form}" for kind, form in groups]
    for name in ("removed", *scored, "parameters", "prefill", "decode", "peak GiB"):
        table.add_column(name, justify="right", overflow="fold")
    if curve.start:
        scores = {(row.kind, row.answers): _score(row) for row in curve.start}
        table.add_row("start", *(scores.get(group, "-") for group in groups), *"----")
    for point in curve.points:
        kept = [_kept(point, kind, answers) for kind, answers in groups]
        table.add_row(_name(point), *kept, *_costs(point), style="bold" if curve.recommends(point) else "")
    return table


def _title(curve: Curve) -> str:
    how = "refit where layers allow it" if curve.compensate == "auto" else curve.compensate
    by = f"ranked by {curve.scorer}" + (f", compensated by {how}" if how != "none" else "")
    return f"% kept of the tuned model and its 95% interval; of {curve.region.num_layers} layers, {by}"


def _score(row: CurveScore) -> str:
    return perplexity(row.score) if row.answers == PERPLEXITY else f"score {100 * row.score:.1f}"


def _name(point: CurvePoint) -> str:
    return f"{point.count}, healed" if point.healed else str(point.count)


def _kept(point: CurvePoint, kind: Kind, answers: AnswerForm) -> str:
    score = point.of(kind, answers)
    if score is None:
        return "-"
    if answers == PERPLEXITY:
        return perplexity(score.score)
    if score.tuned is None:
        return f"score {100 * score.score:.1f}"
    row = score.tuned
    reach = "" if row.retention_low is None else f" [{row.retention_low:.1f}, {row.retention_high:.1f}]"
    return "-" if row.retention is None else f"{row.retention:.1f}{reach}"


def _costs(point: CurvePoint) -> tuple[str, str, str, str]:
    speed = point.speed
    peak = speed.smaller.peak_memory_gib if speed else None
    return (
        f"{point.parameters / 1e6:,.1f} M",
        f"{point.prefill:.2f}x" if speed else "-",
        f"{point.decode:.2f}x" if speed else "-",
        "-" if peak is None else f"{peak:.2f}",
    )

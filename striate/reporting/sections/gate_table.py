"""The gate's verdict at the top of the page."""

from striate.artifacts import GateResult, GateRow
from striate.reporting.html.markup import Html, tag
from striate.wording import count, interval, sample


def draw_gate(gate: GateResult | None) -> Html | None:
    """Return whether the gate was passed and how each condition stands, or None where there was no gate."""
    if gate is None:
        return None
    verdict = "Gate passed" if gate.passed else "Gate failed"
    heading = tag(
        "p",
        tag("b", verdict, class_="right" if gate.passed else "wrong"),
        f": {gate.gate}, in % of the model that each is held against",
    )
    rows = [tag("li", _row(row, gate.reference(row))) for row in gate.rows]
    return tag("div", heading, tag("ul", rows), class_="gate", id="gate")


def _row(row: GateRow, against: str) -> list[Html]:
    mark = tag("span", "✓" if row.passed else "✗", class_="right" if row.passed else "wrong")
    return [mark, tag("span", f" {row.label}: {row.condition}, {_kept(row, against)}. {_told(row)}")]


def _kept(row: GateRow, against: str) -> str:
    if row.retention is None:
        return f"no retention: {row.no_interval or f'{against} scores nothing'}"
    ends = f"{row.low:.1f} to {row.high:.1f}" if row.low is not None and row.high is not None else ""
    above = " above its floor" if row.above_floor else ""
    return f"keeps {row.retention:.1f}% of {against}{above}, {interval(ends, row.no_interval)}, {sample(row.n)}"


def _told(row: GateRow) -> str:
    if row.resolvable:
        return "The sample is large enough to tell."
    if not row.needed_n:
        return "The sample is too small to tell."
    # Earlier versions took the measured retention for true.
    told = f" tell a true {row.threshold + row.effect:g}% from {row.threshold:g}%, 4 times in 5" if row.effect else ""
    return f"The sample is too small to tell: about {count(row.needed_n)} items{told or ' would do'}."

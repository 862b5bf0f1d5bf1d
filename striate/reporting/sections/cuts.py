"""The order in which a greedy ranking removed layers, and what each cut cost: for choosing how many to remove."""

from collections.abc import Sequence

from striate.artifacts import Cut, PruneRecord
from striate.reporting.charts.cut_costs import CURVES, added_costs, draw_cut_costs
from striate.reporting.charts.drawing.svg import picture
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Child, Html, tag
from striate.reporting.html.tables import Cell, figures, table
from striate.wording import amount, signed

ACCURACY = "answer-accuracy"


def draw_cuts(artifacts: RunArtifacts) -> Child:
    """Return the curve and the table of cuts, or None where layers were not ranked greedily."""
    record = artifacts.prune
    if not record or not record.cuts:
        return None
    kinds, gone = list(added_costs(record.cuts)), len(record.removed) - len(record.cuts)
    legend = [tag("li", tag("i", class_=f"key {_key(kind)}"), f"{kind} samples") for kind in kinds]
    label = f"What removing 0 to {len(record.removed)} layers costs, {' and '.join(kinds)}"
    drawn = picture("cuts", label, lambda width: draw_cut_costs(record.cuts, gone, width), _note(record, gone))
    return [tag("ul", legend, class_="legend"), drawn, _table(record.cuts, kinds, gone)]


def _key(kind: str) -> str:
    """Return the class of a kind's colour: that of its curve."""
    return {"first": "tuned", "second": "pruned"}[CURVES[kind]]


def _note(record: PruneRecord, gone: int) -> str:
    unit = "share of answer tokens that are not the likeliest" if ACCURACY in record.scorer else "answer loss"
    first = f" {amount(gone, 'layer')} that the region gives up went before." if gone else ""
    return (
        f"What calibration answers cost more than before the first cut, in {unit}, ranked by {record.scorer}.{first}"
        " Where a curve turns up, one layer fewer keeps much more. This is what the ranking asked, without compensation"
        " and healing; what the pruned model answers to test questions stands below. Hover for the layer."
    )


def _table(cuts: Sequence[Cut], kinds: Sequence[str], gone: int) -> Html:
    heads = ["removed", "layer", *(f"{kind}, {what}" for kind in kinds for what in ("cost", "added")), "next candidate"]
    rows = [_cells(cut, kinds, gone + place) for place, cut in enumerate(cuts, start=1)]
    return tag("details", tag("summary", f"Every cut ({len(cuts)})"), table(heads, rows))


def _cells(cut: Cut, kinds: Sequence[str], removed: int) -> list[Cell]:
    costs = [
        text for kind in kinds for text in (f"{cut.after[kind]:.4f}", signed(cut.after[kind] - cut.before[kind], 4))
    ]
    return [Cell(str(removed), head=True), *figures(str(cut.layer), *costs, _next(cut))]


def _next(cut: Cut) -> str:
    """Return the candidate that cost least after the one that went, and by how much more, weighed."""
    others = {layer: cost for layer, cost in cut.candidates.items() if layer != cut.layer}
    if not others:
        return "–"
    layer = min(others, key=lambda candidate: others[candidate])
    return f"{layer} ({signed(others[layer] - cut.candidates[cut.layer], 4)})"

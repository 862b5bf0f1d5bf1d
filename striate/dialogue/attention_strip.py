"""How much each layer of several models looked at the picture, as one drawing: a row a model, a column a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from striate.artifacts import Region
from striate.reporting.charts.drawing.colours import theme_css
from striate.reporting.charts.drawing.svg import WIDE
from striate.reporting.charts.heat import Heat, Spot, draw_heat
from striate.reporting.html.markup import Html, tag

Shares = Mapping[int, float]
"""The share of attention that falls on image tokens, by layer as the model before pruning counts them."""

STYLE = (
    ".strip{overflow-x:auto}.strip svg{display:block;width:100%;min-width:520px;height:auto}"
    ".strip svg text{font-size:10.5px;fill:var(--muted)}.strip svg .head{font-size:11.5px;fill:var(--ink)}"
    ".strip svg .tick,.strip svg .tiny{font-size:9.5px}.strip svg .end{text-anchor:end}"
    ".strip svg .middle{text-anchor:middle}.strip svg .dot{stroke:none}.strip svg .dot.strong{fill:var(--paper)}"
    ".strip svg .dot.plain{fill:var(--ink)}.strip p{margin:6px 0 0;font-size:13px;color:var(--muted)}"
)
PLAIN = "The share of attention that the words give to the picture, mean over heads, layer by layer."
MARKS = " A dot marks a layer of the region, an empty place one that was removed."


def strip_css() -> str:
    """Return the style sheet of the drawing, with the report's colours."""
    return theme_css() + STYLE


def attention_strip(rows: Mapping[str, Shares], num_layers: int, region: Region | None) -> Html:
    """Return the drawing of `rows`, models by name, over `num_layers` layers; nothing where no model saw a picture."""
    rows = {name: shares for name, shares in rows.items() if shares}
    if not rows:
        return Html("")
    most = max(share for shares in rows.values() for share in shares.values()) or 1.0
    heat = Heat(
        rows=list(rows),
        columns=[str(layer) for layer in range(num_layers)],
        spots=[_spots(name, shares, num_layers, most, region) for name, shares in rows.items()],
        column_title="decoder layer, the input on the left",
        ends=("0% of the attention", f"{100 * most:.0f}%"),
    )
    height, shapes = draw_heat(heat, WIDE)
    label = "attention to the picture by layer"
    drawing = tag("svg", shapes, viewBox=f"0 0 {WIDE:.0f} {height:.0f}", role="img", aria_label=label)
    return tag("div", drawing, tag("p", PLAIN + (MARKS if region else "")), class_="strip")


def _spots(name: str, shares: Shares, num_layers: int, most: float, region: Region | None) -> Sequence[Spot | None]:
    return [
        Spot(
            shares[layer] / most,
            f"{name}, layer {layer}: {100 * shares[layer]:.1f}% of the attention",
            dotted=region is not None and layer in region,
        )
        if layer in shares
        else None
        for layer in range(num_layers)
    ]

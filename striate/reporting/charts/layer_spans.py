"""Triangle of angular distances over spans of layers: how far a span moves its input."""

from striate.artifacts import LayerScores
from striate.reporting.charts.drawing.layout import scale_of
from striate.reporting.charts.heat import Heat, Spot
from striate.wording import amount, plain_number, words


def span_triangle(entry: LayerScores) -> Heat:
    """Return the distances of `entry.spans`: a row a length, a column a first layer; the least of each row marked."""
    scale = scale_of([value for row in entry.spans for value in row])
    layers = max(map(len, entry.spans))
    rows: list[list[Spot | None]] = []
    for length, values in enumerate(entry.spans, start=1):
        best = values.index(min(values)) if len(values) > 1 else -1
        row: list[Spot | None] = [
            Spot(scale.share(value), _tip(entry, first, length, value), plain_number(value), first == best)
            for first, value in enumerate(values)
        ]
        rows.append(row + [None] * (layers - len(row)))
    return Heat(
        rows=[str(length) for length in range(1, len(rows) + 1)],
        columns=[str(layer) for layer in range(layers)],
        spots=rows,
        widest=46.0,
        column_title="first layer of the span",
        row_title="length",
        ends=(f"{plain_number(scale.low)}: could go", f"{plain_number(scale.high)}: needed"),
    )


def _tip(entry: LayerScores, first: int, length: int, value: float) -> str:
    layers = f"layer {first}" if length == 1 else f"layers {first} to {first + length - 1}"
    return f"{layers} ({amount(length, 'layer')}) · {words(entry.scorer)}: {value:.4g}"

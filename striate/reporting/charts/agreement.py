"""Heat map of Spearman's rank correlations between rankings of the layers."""

from collections.abc import Sequence

from striate.reporting.charts.heat import Heat, Spot
from striate.reporting.data.series import Series, names_of
from striate.scores.ranking import spearman
from striate.wording import MINUS


def agreement_of(series: Sequence[Series]) -> Heat:
    """Return Spearman's rank correlations between all pairs of `series`, as a square."""
    return Heat(
        rows=names_of(series),
        columns=names_of(series),
        spots=[[_spot(scored, other) for other in series] for scored in series],
        widest=46.0,
        tallest=25.0,
        ends=(f"{MINUS}1: reversed", "+1: the same ranking"),
        two_sided=True,
    )


def _spot(scored: Series, other: Series) -> Spot | None:
    value = spearman(scored.values, other.values)
    if value is None:
        return None
    label = f"{value:.2f}".replace("-", MINUS)
    return Spot(value, f"{scored.name} and {other.name}: rank correlation {label}", label, two_sided=True)

"""Every layer: ordinary visual instruction tuning."""

from __future__ import annotations

from striate.artifacts import Scores
from striate.registry import Strategy
from striate.selectors.spec.params import Selector, SpecParams


def all_layers(params: SpecParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return every layer."""
    return tuple(range(num_layers))


ALL: Strategy[Selector] = Strategy(
    name="all",
    title="All layers",
    summary="every layer, as in ordinary visual instruction tuning",
    function=all_layers,
    params=SpecParams,
)

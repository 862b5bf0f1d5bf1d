"""No layer: only the projector trains."""

from __future__ import annotations

from striate.artifacts import Scores
from striate.registry import Strategy
from striate.selectors.spec.params import Selector, SpecParams


def no_layers(params: SpecParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return no layer at all: the one way to ask for an empty region."""
    return ()


NONE: Strategy[Selector] = Strategy(
    name="none",
    title="No layers",
    summary="an empty region: only the projector trains",
    function=no_layers,
    params=SpecParams,
)

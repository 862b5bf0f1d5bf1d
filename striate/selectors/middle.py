"""The middle layers in one block."""

from __future__ import annotations

from striate.artifacts import Scores
from striate.registry import Strategy
from striate.selectors.spec.params import Selector, SizeParams


def middle(params: SizeParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return k neighbouring layers half-way up; where they can't be centred, the lower place."""
    count = params.size.of(num_layers)
    start = (num_layers - count) // 2
    return tuple(range(start, start + count))


MIDDLE: Strategy[Selector] = Strategy(
    name="middle",
    title="Middle block",
    summary="the layers half-way up, in one block",
    function=middle,
    params=SizeParams,
)

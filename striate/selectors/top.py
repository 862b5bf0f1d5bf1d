"""The highest layers in one block."""

from __future__ import annotations

from striate.artifacts import Scores
from striate.registry import Strategy
from striate.selectors.spec.params import Selector, SizeParams


def top(params: SizeParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return the last k layers, next to the output."""
    count = params.size.of(num_layers)
    return tuple(range(num_layers - count, num_layers))


TOP: Strategy[Selector] = Strategy(
    name="top",
    title="Top block",
    summary="the last layers, next to the output",
    function=top,
    paper="https://arxiv.org/abs/2412.12785",
    params=SizeParams,
)

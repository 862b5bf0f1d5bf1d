"""The lowest layers in one block."""

from __future__ import annotations

from striate.artifacts import Scores
from striate.registry import Strategy
from striate.selectors.spec.params import Selector, SizeParams


def bottom(params: SizeParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return the first k layers, next to the input."""
    count = params.size.of(num_layers)
    return tuple(range(count))


BOTTOM: Strategy[Selector] = Strategy(
    name="bottom",
    title="Bottom block",
    summary="the first layers, next to the input",
    function=bottom,
    paper="https://arxiv.org/abs/2412.12785",
    params=SizeParams,
)

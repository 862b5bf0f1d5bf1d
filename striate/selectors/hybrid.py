"""Two blocks, one at the bottom and one at the top."""

from __future__ import annotations

from striate.artifacts import Scores
from striate.registry import Strategy
from striate.selectors.spec.params import Selector, SizeParams


def hybrid(params: SizeParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return ceil(k / 2) layers at the bottom and floor(k / 2) at the top."""
    count = params.size.of(num_layers)
    above = count // 2
    return (*range(count - above), *range(num_layers - above, num_layers))


HYBRID: Strategy[Selector] = Strategy(
    name="hybrid",
    title="Hybrid",
    summary="half of the layers at the bottom, half at the top",
    function=hybrid,
    paper="https://arxiv.org/abs/2412.12785",
    params=SizeParams,
)

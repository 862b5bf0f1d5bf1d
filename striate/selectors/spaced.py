"""The best layer of each stripe: as important as spacing allows."""

from __future__ import annotations

from itertools import pairwise

from striate.artifacts import Scores
from striate.registry import Strategy
from striate.selectors.spec.params import Selector
from striate.selectors.spec.score_params import ScoredParams, layer_scores


def spaced(params: ScoredParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return the highest-scored layer of each of k stripes; of equal scores the one nearer to the input.

    Stripe i = 0..k-1 holds the layers `floor(i * L / k)` to `floor((i + 1) * L / k) - 1`, L the number of layers, so
    the stripes begin where `uniform:k` has its layers. It joins the paper's even spread (arXiv 2412.12785) with a
    ranking: two chosen layers are less than two stripes apart.

    Raises:
        SpecError: there are no scores, or they are of a model with another number of layers.
        ArtifactError: that scorer was not run, or not by that task.
    """
    values = layer_scores(params.names[0], num_layers, scores).values
    count = params.size.of(num_layers)
    starts = [i * num_layers // count for i in range(count + 1)]
    stripes = (range(start, end) for start, end in pairwise(starts))
    return tuple(max(stripe, key=lambda layer: (values[layer], -layer)) for stripe in stripes)


SPACED: Strategy[Selector] = Strategy(
    name="spaced",
    title="Spaced by scores",
    summary="the most important layer of each of k even stripes",
    function=spaced,
    paper="https://arxiv.org/abs/2412.12785",
    params=ScoredParams,
)

"""The layers that a scorer finds most important."""

from __future__ import annotations

from striate.artifacts import Scores
from striate.registry import Strategy
from striate.selectors.spec.params import Selector
from striate.selectors.spec.score_params import ScoredParams, layer_scores


def from_scores(params: ScoredParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return the k layers with the highest scores; of equal scores the one nearer to the input.

    Raises:
        SpecError: there are no scores, or they are of a model with another number of layers.
        ArtifactError: that scorer was not run, or not by that task.
    """
    values = layer_scores(params.names[0], num_layers, scores).values
    best = sorted(range(num_layers), key=lambda layer: (-values[layer], layer))
    return tuple(sorted(best[: params.size.of(num_layers)]))


SCORES: Strategy[Selector] = Strategy(
    name="scores",
    title="By scores",
    summary="the layers that a scorer finds most important, on all samples or on one task",
    function=from_scores,
    params=ScoredParams,
)

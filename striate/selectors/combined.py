"""The layers that several scorers together rank highest."""

from __future__ import annotations

from typing import ClassVar, Self

from striate.artifacts import Scores
from striate.errors import SpecError
from striate.registry import Strategy
from striate.scores.ranking import mean_ranks
from striate.selectors.spec.params import Selector
from striate.selectors.spec.score_params import ScoredParams, layer_scores
from striate.selectors.spec.size import read_size


class CombinedParams(ScoredParams):
    """Which scorers, each on one task if not on all samples, and how many layers."""

    forms: ClassVar[str] = "SCORER+SCORER:SIZE, each with @TASK if wished, for example block-influence+fisher:25%"

    @classmethod
    def read(cls, argument: str | None) -> Self:
        """Return the params for `SCORER[@TASK]+SCORER[@TASK]...:SIZE`."""
        text, size = cls.split_size(argument)
        names = tuple(cls.read_name(part, argument) for part in text.split("+"))
        if len(set(names)) < max(2, len(names)):
            raise SpecError(
                f"{text!r} names only one scorer, or one twice", cls.forms, "join two or more with +, or use scores:"
            )
        return cls(names=names, size=read_size(size))


def combined(params: CombinedParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return the k layers with the best mean rank over the named scorers; of equal ranks the one nearer to the input.

    Each scorer ranks the layers from 1 (most important) on, equal scores at the mean of their ranks. The mean rank
    orders layers as the Borda count does (Borda 1781; Dwork et al. 2001, Rank aggregation methods for the Web), and
    the scorers' different scales have no part in it.

    Raises:
        SpecError: there are no scores, or they are of a model with another number of layers.
        ArtifactError: one of the scorers was not run, or not by that task.
    """
    ranks = mean_ranks([layer_scores(name, num_layers, scores).values for name in params.names])
    best = sorted(range(num_layers), key=lambda layer: (ranks[layer], layer))
    return tuple(sorted(best[: params.size.of(num_layers)]))


COMBINED: Strategy[Selector] = Strategy(
    name="combined",
    title="Combined by rank",
    summary="the layers with the best mean rank over several scorers",
    function=combined,
    paper="https://doi.org/10.1145/371920.372165",
    params=CombinedParams,
)

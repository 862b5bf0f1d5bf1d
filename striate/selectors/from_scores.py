"""The layers that a scorer finds most important."""

from __future__ import annotations

import math
from typing import ClassVar, Self

from striate.artifacts import Scores
from striate.errors import SpecError
from striate.registry import Strategy
from striate.selectors.params import Selector, SizeParams
from striate.selectors.size import read_size


class ScoresParams(SizeParams):
    """Which scorer, and how many layers."""

    forms: ClassVar[str] = "SCORER:SIZE, for example block-influence:25%"
    scorer: str

    @classmethod
    def read(cls, argument: str | None) -> Self:
        """Return the params for `SCORER:SIZE`."""
        scorer, colon, size = cls.required(argument).partition(":")
        if not colon or not scorer.strip():
            raise SpecError(
                f"{argument!r} does not name a scorer and a size", cls.forms, "see `striate ls scorers` for the names"
            )
        return cls(scorer=scorer.strip(), size=read_size(size))


def from_scores(params: ScoresParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return the k layers with the highest scores; of equal scores the one nearer to the input.

    Raises:
        SpecError: there are no scores, or they are of a model with another number of layers.
        ArtifactError: that scorer was not run.
    """
    if scores is None:
        raise SpecError(
            "a region by scores needs scores, and there are none",
            "scores.json of the same model",
            f"run `striate analyze` with the scorer {params.scorer!r} first",
        )
    values = scores.of(params.scorer).values
    if {scores.num_layers, len(values)} != {num_layers}:
        raise SpecError(
            f"the scores are of {len(values)} layers, and the model has {num_layers}",
            "scores of the same model",
            "run `striate analyze` on this model",
        )
    if not all(map(math.isfinite, values)):
        raise SpecError(
            f"the scores of {params.scorer!r} hold values that are not numbers",
            "finite scores",
            "run `striate analyze` again",
        )
    best = sorted(range(num_layers), key=lambda layer: (-values[layer], layer))
    return tuple(sorted(best[: params.size.of(num_layers)]))


SCORES: Strategy[Selector] = Strategy(
    name="scores",
    title="By scores",
    summary="the layers that a scorer finds most important",
    function=from_scores,
    params=ScoresParams,
)

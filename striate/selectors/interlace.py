"""INTERLACE: of two redundant neighbours one trains and one may go, and the layer after them stays as an anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from striate.artifacts import LayerScores, Scores
from striate.errors import SpecError
from striate.registry import Strategy
from striate.selectors.spec.params import Selector
from striate.selectors.spec.score_params import ScoredParams, ScoreName, layer_scores
from striate.selectors.spec.size import read_size

TRIPLET = 3
DEFAULT_SCORER = "angular-distance"


@dataclass(frozen=True)
class Pair:
    """Two neighbouring layers: one trains, the other may be removed; the layer after them is frozen, as all others."""

    trains: int
    removable: int


class InterlaceParams(ScoredParams):
    """Whose spans are compared, and how many layers train (as many may be removed)."""

    forms: ClassVar[str] = f"SIZE, or SCORER:SIZE with a scorer that has spans ({DEFAULT_SCORER} if none is named): 25%"

    @classmethod
    def read(cls, argument: str | None) -> Self:
        """Return the params for `[SCORER[@TASK]:]SIZE`."""
        if ":" in cls.required(argument):
            return super().read(argument)
        return cls(names=(ScoreName(DEFAULT_SCORER),), size=read_size(cls.required(argument)))

    def removable(self, num_layers: int, scores: Scores | None) -> tuple[int, ...]:
        """Return the redundant partner of every layer that trains, of the most redundant triplet first."""
        return tuple(pair.removable for pair in pairs(self, num_layers, scores))


def interlace(params: InterlaceParams, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    """Return the layers that INTERLACE fine-tunes; `Region.removable` gets those that it removes.

    Paper: INTERLACE, arXiv 2511.19676. A triplet is three consecutive layers l, l+1, l+2, and it is the more redundant
    the nearer the output of l+2 is to the input of l. From the most redundant on, triplets that share no layer with an
    earlier one are taken until there are k. Of the first two layers of each, the one whose own output is nearer to its
    input is removable (l if they are equal) and the other trains; the third is frozen. Where no free triplet is left,
    pairs l, l+1 are taken in the same way, without an anchor, as in the authors' code.

    Here nearness is a scorer's span distance, by default the angular distance; the paper ranks by mean cosine
    similarity. The paper removes first and trains afterwards; docs/regions.md says how to do either.

    Raises:
        SpecError: there are no scores, the scorer has no spans of three layers, or k pairs do not fit.
        ArtifactError: that scorer was not run, or not by that task.
    """
    return tuple(sorted(pair.trains for pair in pairs(params, num_layers, scores)))


def pairs(params: InterlaceParams, num_layers: int, scores: Scores | None) -> tuple[Pair, ...]:
    """Return the k pairs in the order in which they are taken; raises as `interlace` does."""
    entry = layer_scores(params.names[0], num_layers, scores)
    count = params.size.of(num_layers)
    _check_spans(entry, num_layers)
    taken: set[int] = set()
    chosen: list[Pair] = []
    for length in (TRIPLET, TRIPLET - 1):
        distances = entry.spans[length - 1]
        for start in sorted(range(num_layers - length + 1), key=lambda layer: (distances[layer], layer)):
            span = range(start, start + length)
            if len(chosen) < count and taken.isdisjoint(span):
                taken.update(span)
                chosen.append(_pair(start, entry.spans[0]))
    if len(chosen) < count:
        raise SpecError(
            f"{count} layers to train and as many to give up: only {len(chosen)} pairs fit into {num_layers} layers",
            f"1 to {len(chosen)} layers",
            "ask for fewer layers",
        )
    return tuple(chosen)


def _pair(start: int, single: tuple[float, ...]) -> Pair:
    """Return the first two layers of a span by their parts: the one that changes its input less is removable."""
    first, second = start, start + 1
    return Pair(first, second) if single[second] < single[first] else Pair(second, first)


def _check_spans(entry: LayerScores, num_layers: int) -> None:
    if num_layers >= TRIPLET and len(entry.spans) < TRIPLET:
        raise SpecError(
            f"the scorer {entry.scorer!r} has no distances over spans of {TRIPLET} layers",
            f"a scorer with spans, such as {DEFAULT_SCORER}",
            f"add {DEFAULT_SCORER} to analyze.scorers and run `striate analyze` again",
        )
    if num_layers < TRIPLET:
        raise SpecError(
            f"a model with {num_layers} layers has no triplet of layers",
            f"a model with {TRIPLET} layers or more",
            "use another selector",
        )


INTERLACE: Strategy[Selector] = Strategy(
    name="interlace",
    title="INTERLACE",
    summary="in each redundant triplet of layers one trains, one may be removed and one is the anchor",
    function=interlace,
    paper="https://arxiv.org/abs/2511.19676",
    params=InterlaceParams,
)

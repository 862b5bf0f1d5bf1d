"""Angular distance: how far a layer, or a span of layers, turns the last token."""

import math

from striate.scorers.base import LayerScorer
from striate.scorers.streaming.view import LayerView, Tally


def angular_distance(view: LayerView) -> dict[str, Tally]:
    """Return the sums behind `arccos(cos(x_in, x_out)) / pi` at the last token: 0 for identity, 0.5 for orthogonal.

    Paper: Gromov et al., arXiv 2403.17887, its angular distance. The score is of single layers; `spans` holds the
    distance from the input of layer l to the output of layer l + n - 1 for every n, by which whole blocks are chosen.
    """
    return view.tally(view.angle / math.pi, "last")


ANGULAR_DISTANCE = LayerScorer(
    name="angular-distance",
    title="Angular distance",
    summary="the angle between a layer's input and output at the last token, as a share of half a turn",
    function=angular_distance,
    paper="https://arxiv.org/abs/2403.17887",
    spans=True,
    limits="it reads one token a sample, so image tokens count only through what that token took from them",
)

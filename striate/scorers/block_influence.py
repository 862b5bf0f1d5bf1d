"""Block Influence: how much a layer turns the hidden states."""

from __future__ import annotations

from torch import Tensor

from striate.registry import Strategy
from striate.scorers.stream import Scorer, Tally, TokenMasks, cosine_distance, tally


def block_influence(x_in_BTD: Tensor, x_out_BTD: Tensor, masks: TokenMasks) -> dict[str, Tally]:
    """Return the sums behind `1 - mean over tokens of cos(x_in, x_out)`: 0 for an identity layer, at most 2.

    Paper: ShortGPT, arXiv 2403.03853, its definition of Block Influence. The last layer's output is taken before the
    final norm, and padding does not count.
    """
    return {"all": tally(cosine_distance(x_in_BTD, x_out_BTD), masks.attended)}


BLOCK_INFLUENCE: Strategy[Scorer] = Strategy(
    name="block-influence",
    title="Block Influence",
    summary="one minus the cosine between a layer's input and output, over all tokens",
    function=block_influence,
    paper="https://arxiv.org/abs/2403.03853",
)

"""Modality-aware Block Influence: image tokens and text tokens count the same, however many there are."""

from __future__ import annotations

from torch import Tensor

from striate.registry import Strategy
from striate.scorers.stream import Scorer, Tally, TokenMasks, cosine_distance, tally


def modality_block_influence(x_in_BTD: Tensor, x_out_BTD: Tensor, masks: TokenMasks) -> dict[str, Tally]:
    """Return the sums behind Block Influence on image tokens and on text tokens apart.

    The score is the mean of `1 - mean cos` on image tokens and `1 - mean cos` on text tokens. Block Influence itself is
    ShortGPT's (arXiv 2403.03853). Image tokens are found by their ids, so samples may have any number of them, or none.
    """
    distance_BT = cosine_distance(x_in_BTD, x_out_BTD)
    return {"image": tally(distance_BT, masks.image), "text": tally(distance_BT, masks.text)}


MODALITY_BLOCK_INFLUENCE: Strategy[Scorer] = Strategy(
    name="modality-block-influence",
    title="Modality-aware Block Influence",
    summary="Block Influence on image tokens and on text tokens, averaged with equal weight",
    function=modality_block_influence,
    paper="https://arxiv.org/abs/2403.03853",
)

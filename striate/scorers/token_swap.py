"""Image-token swap: which layer reads the attribute in which two pictures differ."""

import numpy as np

from striate.scorers.runners.pairs import PairScorer, Preferences
from striate.scorers.statistics.sums import PartSums


def token_swap(pairs: Preferences) -> PartSums:
    """Return what share of the turn from A's answer to B's comes from swapping image tokens at one layer alone.

    The score of layer l is `sum(d_A - d_l) / sum(d_A - d_B)` over the pairs that the model tells apart; d is
    `log p(a) - log p(b)` of the two answers, d_A with picture A, d_B with picture B, d_l with A when the text tokens of
    layer l read keys and values of B's image tokens (their states as B alone makes them) and all other layers read A's.
    0: the layer reads nothing of the attribute; 1: as if B was shown. Paper: Vision Function Layers, arXiv 2509.24791,
    swaps at one layer too, in the cache of keys and values, and counts changed answers; here the question's tokens read
    the swapped states as well, since they may carry what the answer says.
    """
    return pairs.shares(pairs.first[:, None] - pairs.at)


def token_swap_flips(pairs: Preferences) -> PartSums:
    """Return how often the answer turns from A's to B's when image tokens are swapped at one layer alone.

    The share of the pairs that the model tells apart for which it prefers B's answer after the swap of `token_swap`.
    """
    flips_PL = pairs.known[:, None] & (pairs.at < 0)
    return PartSums(flips_PL.astype(np.float64), pairs.known.astype(np.float64))


def token_swap_onward(pairs: Preferences) -> PartSums:
    """Return what share of the turn is lost when the swap begins one layer later: what layer l is the last to read.

    With e_l the share of the turn (see `token_swap`) when image tokens are B's from the input of layer l on, the score
    of layer l is `e_l - e_(l+1)`; e behind the last layer is 0, and the scores of all layers add up to e_0, which is 1
    where pictures enter as image tokens alone. Unlike a swap at one layer it also finds what several layers read.
    """
    later_PL = np.concatenate([pairs.onward[:, 1:], pairs.first[:, None]], axis=1)
    return pairs.shares(later_PL - pairs.onward)


_PAPER = "https://arxiv.org/abs/2509.24791"

TOKEN_SWAP = PairScorer(
    name="token-swap",
    title="Image-token swap",
    summary="how far the answer turns to another picture's when one layer reads that picture's image tokens",
    function=token_swap,
    paper=_PAPER,
    source="picture pairs",
    limits="drawn pictures only; what several layers read alike shows at none of them; needs pairs that it tells apart",
)

TOKEN_SWAP_FLIPS = PairScorer(
    name="token-swap-flips",
    title="Image-token swap (answers changed)",
    summary="how often the answer becomes another picture's when one layer reads that picture's image tokens",
    function=token_swap_flips,
    paper=_PAPER,
    source="picture pairs",
    limits="coarse: it moves only where the preferred answer changes; drawn pictures only",
    bounds=(0.0, 1.0),
)

TOKEN_SWAP_ONWARD = PairScorer(
    name="token-swap-onward",
    title="Image-token swap, from a layer on",
    summary="what the layer is the last to read: the fall of the answer's turn when the swap begins one layer later",
    function=token_swap_onward,
    paper=_PAPER,
    source="picture pairs",
    onward=True,
    limits="the last of several readers takes all the credit; drawn pictures only",
)

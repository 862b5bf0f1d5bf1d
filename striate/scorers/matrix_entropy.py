"""Matrix entropy: whether a layer spreads the tokens of a sample over more directions, or gathers them."""

from __future__ import annotations

import torch
from torch import Tensor

from striate.scorers.groups import TokenGroups
from striate.scorers.kinds import LayerScorer
from striate.scorers.view import LayerView, Tally


def matrix_entropy(view: LayerView) -> dict[str, Tally]:
    """Return the sums behind `|S(X_out) - S(X_in)|` in nats, of each sample's image tokens and of its text tokens.

    Paper: Skean et al., arXiv 2502.02013, matrix-based entropy of order 2: `S(X) = -ln(|K|_F^2 / (tr K)^2)` with
    `K = X X'` between up to 64 evenly spaced tokens of one kind; here tokens are centred first, so `exp(S)` is the
    number of directions over which they spread (the participation ratio). It is 0 where a layer keeps that number.
    Samples with fewer than 4 tokens of a kind do not count for it.
    """
    before_G, after_G = view.from_grams(_entropy)
    return view.tally_groups((after_G - before_G).abs())


def _entropy(gram_GMM: Tensor, _: TokenGroups) -> Tensor:
    """Return the entropy of each Gram matrix in nats, shape (G,); 0 where all tokens are one."""
    trace_G = gram_GMM.diagonal(dim1=1, dim2=2).sum(1)
    scaled_GMM = gram_GMM / torch.where(trace_G == 0, 1.0, trace_G)[:, None, None]
    square_G = scaled_GMM.square().sum((1, 2))
    return -torch.where(square_G == 0, 1.0, square_G).log()


MATRIX_ENTROPY = LayerScorer(
    name="matrix-entropy",
    title="Change of matrix entropy",
    summary="how far a layer spreads or gathers the directions of a sample's image tokens and of its text tokens",
    function=matrix_entropy,
    paper="https://arxiv.org/abs/2502.02013",
    limits="it sees how many directions are in use, not which; a layer may change everything and keep their number",
)

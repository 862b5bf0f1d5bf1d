"""Matrix entropy: whether a layer spreads the tokens of a sample over more directions, or gathers them."""

from torch import Tensor

from striate.scorers.base import LayerScorer
from striate.scorers.streaming.view import LayerView, Tally


def matrix_entropy(view: LayerView) -> dict[str, Tally]:
    """Return the sums behind `|S(X_out) - S(X_in)|` in nats, of each sample's image tokens and of its text tokens.

    Paper: Skean et al., arXiv 2502.02013, matrix-based entropy of order 2: `S(X) = -ln(|K|_F^2 / (tr K)^2)` with
    `K = X X'` between up to 64 evenly spaced tokens of one kind; here tokens are centred first, so `exp(S)` is the
    number of directions over which they spread (the participation ratio). It is 0 where a layer keeps that number.
    Samples with fewer than 4 tokens of a kind do not count for it.
    """
    before_KG, after_KG = view.grams.pair(_entropy(view.grams.states))
    return view.tally_groups((after_KG - before_KG).abs())


def _entropy(gram_SGMM: Tensor) -> Tensor:
    """Return the entropy of each Gram matrix in nats, shape (S, G); 0 where all tokens are one."""
    trace_SG = gram_SGMM.diagonal(dim1=-2, dim2=-1).sum(-1)
    scaled_SGMM = gram_SGMM / trace_SG.masked_fill(trace_SG == 0, 1.0)[..., None, None]
    square_SG = scaled_SGMM.square().sum((-2, -1))
    return -square_SG.masked_fill(square_SG == 0, 1.0).log()


MATRIX_ENTROPY = LayerScorer(
    name="matrix-entropy",
    title="Change of matrix entropy",
    summary="how far a layer spreads or gathers the directions of a sample's image tokens and of its text tokens",
    function=matrix_entropy,
    paper="https://arxiv.org/abs/2502.02013",
    reads="grams",
    limits="it sees how many directions are in use, not which; a layer may change everything and keep their number",
)

"""Linear CKA: how much a layer changes the similarities between the tokens of a sample."""

import torch
from torch import Tensor

from striate.scorers.base import LayerScorer
from striate.scorers.streaming.groups import TokenGroups
from striate.scorers.streaming.view import LayerView, Tally


def linear_cka(view: LayerView) -> dict[str, Tally]:
    """Return the sums behind `1 - CKA(X_in, X_out)` of each sample's image tokens and of its text tokens.

    Papers: Kornblith et al., arXiv 1905.00414, equation 1 with linear kernels; the unbiased HSIC of Song et al. 2012 in
    the minibatch form of Nguyen et al., arXiv 2010.15327, equation 3, each sample being a minibatch of its own. With
    `K = X X'` between up to 64 evenly spaced tokens of one kind, `CKA = HSIC(K_in, K_out) / sqrt(HSIC(K_in, K_in)
    HSIC(K_out, K_out))`. The score is the mean over samples, then over image and text. It is 0 where a layer only
    shifts, rotates or rescales all tokens alike, 1 where their places have nothing in common any more. Samples with
    fewer than 4 tokens of a kind do not count for it.
    """
    units_SGF = _directions(view.grams.states, view.groups)
    lengths_KG = view.grams.pair(units_SGF.square().sum(-1))
    inner_KGF, outer_KGF = view.grams.pair(units_SGF)
    # Half the squared distance of unit vectors is one minus their cosine; a zero one counts as orthogonal to others.
    apart_KG = (inner_KGF - outer_KGF).square().sum(-1) + (lengths_KG[0] - lengths_KG[1]).abs()
    return view.tally_groups(apart_KG / 2)


def centred(gram_KGMM: Tensor, pairs_GMM: Tensor, sizes_G11: Tensor) -> Tensor:
    """Return the U-centred Gram matrices: their inner products are `n (n - 3)` times the unbiased HSIC.

    Paper: Szekely and Rizzo, Annals of Statistics 42 (2014), definition 2. Off the diagonal, entry (i, j) becomes
    `k_ij - sum_l k_il / (n - 2) - sum_l k_lj / (n - 2) + sum_kl k_kl / ((n - 1) (n - 2))`; on it, 0.

    Args:
        gram_KGMM: inner products.
        pairs_GMM: 1 for pairs of two tokens of the group, else 0.
        sizes_G11: n, the number of tokens of each group, 3 at least.
    """
    off_KGMM = gram_KGMM * pairs_GMM
    rows_KGM1 = off_KGMM.sum(-1, keepdim=True)
    whole_KG11 = rows_KGM1.sum(-2, keepdim=True) / (sizes_G11 - 1)
    return (off_KGMM - (rows_KGM1 + rows_KGM1.mT - whole_KG11) / (sizes_G11 - 2)) * pairs_GMM


def _directions(gram_SGMM: Tensor, groups: TokenGroups) -> Tensor:
    """Return the U-centred Gram matrices as unit vectors, shape (S, G, M * M); zero where all tokens are one."""
    device = gram_SGMM.device
    rows_SGF = centred(gram_SGMM, groups.on("pairs", device), groups.on("divisors", device)).flatten(-2)
    largest_SG1 = rows_SGF.abs().amax(-1, keepdim=True)
    # First by the largest entry, so that no square overflows.
    rows_SGF = rows_SGF / largest_SG1.masked_fill(largest_SG1 == 0, 1.0)
    length_SG1 = torch.linalg.vector_norm(rows_SGF, dim=-1, keepdim=True)
    return rows_SGF / length_SG1.masked_fill(length_SG1 == 0, 1.0)


LINEAR_CKA = LayerScorer(
    name="linear-cka",
    title="Linear CKA",
    summary="one minus linear CKA between a layer's input and output, over image and over text tokens of each sample",
    function=linear_cka,
    paper="https://arxiv.org/abs/1905.00414",
    reads="grams",
    limits="a few directions of large variance decide it, and a layer that turns all tokens alike scores 0",
)

"""Linear CKA: whether a layer changes how the tokens of a sample lie to each other."""

from __future__ import annotations

import torch
from torch import Tensor

from striate.scorers.kinds import LayerScorer
from striate.scorers.view import LayerView, Tally, turn


def linear_cka(view: LayerView) -> dict[str, Tally]:
    """Return the sums behind `1 - CKA(X_in, X_out)` of each sample's image tokens and of its text tokens.

    Papers: Kornblith et al., arXiv 1905.00414, equation 1 with linear kernels; the unbiased HSIC of Song et al. 2012 in
    the minibatch form of Nguyen et al., arXiv 2010.15327, equation 3, each sample being a minibatch of its own. With
    `K = X X'` between up to 64 evenly spaced tokens of one kind, `CKA = HSIC(K_in, K_out) / sqrt(HSIC(K_in, K_in)
    HSIC(K_out, K_out))`. The score is the mean over samples, then over image and text. It is 0 where a layer only
    shifts, rotates or rescales all tokens alike, 1 where their places have nothing in common any more. Samples with
    fewer than 4 tokens of a kind do not count for it.
    """
    chosen_GM = view.groups.on("chosen", view.x_out.device)
    inner, outer = (centred(gram, chosen_GM).flatten(1) for gram in (view.gram_in, view.gram_out))
    return view.tally_groups(turn(_scaled(inner), _scaled(outer)).cosine_distance)


def centred(gram_GMM: Tensor, chosen_GM: Tensor) -> Tensor:
    """Return the U-centred Gram matrices: their inner products are `n (n - 3)` times the unbiased HSIC.

    Paper: Szekely and Rizzo, Annals of Statistics 42 (2014), definition 2. Off the diagonal, entry (i, j) becomes
    `k_ij - sum_l k_il / (n - 2) - sum_l k_lj / (n - 2) + sum_kl k_kl / ((n - 1) (n - 2))`; on it, 0.
    """
    pairs_GMM = chosen_GM[:, :, None] & chosen_GM[:, None, :]
    pairs_GMM = pairs_GMM & ~torch.eye(chosen_GM.shape[1], dtype=torch.bool, device=chosen_GM.device)
    n_G11 = chosen_GM.sum(1)[:, None, None].clamp_min(3).to(gram_GMM.dtype)
    off_GMM = gram_GMM * pairs_GMM
    rows_GM1 = off_GMM.sum(2, keepdim=True) / (n_G11 - 2)
    whole_G11 = off_GMM.sum((1, 2), keepdim=True) / ((n_G11 - 1) * (n_G11 - 2))
    return (off_GMM - rows_GM1 - rows_GM1.mT + whole_G11) * pairs_GMM


def _scaled(rows_GF: Tensor) -> Tensor:
    """Return each row divided by its largest entry, so that no square overflows."""
    largest_G1 = rows_GF.abs().amax(1, keepdim=True)
    return rows_GF / torch.where(largest_G1 == 0, 1.0, largest_G1)


LINEAR_CKA = LayerScorer(
    name="linear-cka",
    title="Linear CKA",
    summary="one minus linear CKA between a layer's input and output, over image and over text tokens of each sample",
    function=linear_cka,
    paper="https://arxiv.org/abs/1905.00414",
    limits="a few directions of large variance decide it, and a layer that turns all tokens alike scores 0",
)

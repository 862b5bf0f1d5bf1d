"""Angular distance: how far a layer turns the last token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from striate.registry import Strategy
from striate.scorers.stream import Scorer, Tally, TokenMasks, tally, unit_difference


def angular_distance(x_in_BTD: Tensor, x_out_BTD: Tensor, masks: TokenMasks) -> dict[str, Tally]:
    """Return the sums behind `arccos(cos(x_in, x_out)) / pi` at the last token: 0 for identity, 0.5 for orthogonal.

    Paper: Gromov et al., arXiv 2403.17887, its angular distance for a span of one layer.
    """
    apart_BT, together_BT = unit_difference(x_in_BTD, x_out_BTD)
    return {"last": tally(2 * torch.atan2(apart_BT, together_BT) / math.pi, masks.last)}


ANGULAR_DISTANCE: Strategy[Scorer] = Strategy(
    name="angular-distance",
    title="Angular distance",
    summary="the angle between a layer's input and output at the last token, as a share of half a turn",
    function=angular_distance,
    paper="https://arxiv.org/abs/2403.17887",
)

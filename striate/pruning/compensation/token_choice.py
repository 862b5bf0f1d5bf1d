"""Tokens that compensation is fitted to and judged by: a few of each kind and sample, every fourth sample held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from striate.models.structure.anatomy import Anatomy
from striate.scorers.streaming.masks import token_masks

# Text is what samples without a picture hold, prompt and answer alike: it is lost first.
KINDS = ("image", "prompt", "answer", "text")
# Of all samples together: enough for several thousand of each kind, few enough to keep their states.
MOST_TOKENS = 1 << 17
_EVERY, _HELD_OUT = 4, 1


@dataclass(frozen=True)
class Tokens:
    """N chosen tokens of a batch; tensors of shape (N,).

    Attributes:
        places: their numbers in the batch, row by row.
        kinds: which of `KINDS` each is.
        held_out: which are for judging, bool.
    """

    places: Tensor
    kinds: Tensor
    held_out: Tensor


def choose_tokens(batch: Mapping[str, Tensor], anatomy: Anatomy, first: int, samples: int) -> Tokens:
    """Return the tokens that stand for a batch, evenly spaced within each kind and sample.

    Where pictures are attended to across the stack (`cross_attends`), the token that stands for one counts as prompt.

    Args:
        batch: a collated batch with labels.
        anatomy: of the model.
        first: the number of the batch's first sample among all; it says which samples are held out.
        samples: how many there are in all.
    """
    masks = token_masks(batch, anatomy)
    image_BT = torch.zeros_like(masks.image) if anatomy.cross_attends else masks.image
    answer_BT = masks.of("answer")
    pictured_B1 = masks.image.any(1, keepdim=True)
    by_kind = (
        image_BT,
        masks.attended & ~image_BT & ~answer_BT & pictured_B1,
        answer_BT & pictured_B1,
        masks.attended & ~pictured_B1,
    )
    most = max(1, MOST_TOKENS // (len(KINDS) * max(1, samples)))
    places, kinds, held = [], [], []
    width = masks.attended.shape[1]
    for row in range(len(masks.attended)):
        for kind, mask_BT in enumerate(by_kind):
            chosen = _spread(mask_BT[row].nonzero()[:, 0], most)
            places.append(chosen + row * width)
            kinds.append(torch.full_like(chosen, kind))
            held.append(torch.full_like(chosen, is_held_out(first + row), dtype=torch.bool))
    return Tokens(torch.cat(places), torch.cat(kinds), torch.cat(held))


def is_held_out(sample: int) -> bool:
    """Return whether the sample of that number is for judging: one in four, the second first."""
    return sample % _EVERY == _HELD_OUT


def kind_weights(kinds_N: Tensor, counts_K: Tensor) -> Tensor:
    """Return the weight of each token, float64, shape (N,): every kind that occurs has the same sum over all tokens.

    Args:
        kinds_N: the kind of each token.
        counts_K: how many tokens of each kind there are in all; the weights of all of them sum to 1.
    """
    occurring = int((counts_K > 0).sum())
    return 1.0 / (counts_K.double().clamp_min(1) * max(1, occurring))[kinds_N]


def _spread(places_S: Tensor, most: int) -> Tensor:
    """Return up to `most` of the places, evenly spaced from the first on."""
    if len(places_S) <= most:
        return places_S
    return places_S[torch.arange(most) * len(places_S) // most]

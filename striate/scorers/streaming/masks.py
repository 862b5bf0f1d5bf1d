"""Token masks of a batch: image, prompt and answer tokens, padding, and the sample of each position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from striate.data.label_mask import IGNORED
from striate.models.structure.anatomy import Anatomy


@dataclass(frozen=True)
class TokenMasks:
    """Which positions of a batch hold what: booleans of shape (B, T).

    Attributes:
        attended: positions that are not padding.
        image: image tokens.
        answer: text tokens that the assistant says; None where it is not known, and then all text is prompt.
        sample: which sample a position belongs to, from 0 on; None where each row is one sample.
    """

    attended: Tensor
    image: Tensor
    answer: Tensor | None = None
    sample: Tensor | None = None

    @property
    def all(self) -> Tensor:
        """Every attended position, shape (B, T)."""
        return self.attended

    @cached_property
    def text(self) -> Tensor:
        """Attended positions that are not image tokens, shape (B, T)."""
        return self.attended & ~self.image

    @cached_property
    def prompt(self) -> Tensor:
        """Text tokens that are not part of an answer, shape (B, T)."""
        return self.text if self.answer is None else self.text & ~self.answer

    @cached_property
    def members(self) -> Tensor:
        """Which attended positions each sample has, shape (N, B, T)."""
        rows_B1 = torch.arange(len(self.attended), device=self.attended.device)[:, None]
        sample_BT = rows_B1 if self.sample is None else self.sample
        numbers_N = torch.arange(self.num_samples, device=self.attended.device)
        return self.attended & (sample_BT == numbers_N[:, None, None])

    @cached_property
    def num_samples(self) -> int:
        """The number of samples in the batch."""
        return len(self.attended) if self.sample is None else int(self.sample.max()) + 1

    @cached_property
    def last(self) -> Tensor:
        """The last attended position of each sample, shape (B, T)."""
        members_NS = self.members.flatten(1)
        following_NS = members_NS.flip(1).cumsum(1).flip(1)
        return (members_NS & (following_NS == 1)).any(0).view_as(self.attended)

    @cached_property
    def after_image(self) -> Tensor:
        """Positions that come after an image token of their own sample, shape (B, T)."""
        seen_NS = (self.members & self.image).flatten(1).cumsum(1) > 0
        return (self.members.flatten(1) & seen_NS).any(0).view_as(self.attended)

    def within(self, mask_BT: Tensor) -> TokenMasks:
        """Return the masks of the positions inside `mask_BT` only."""
        return replace(self, attended=self.attended & mask_BT, image=self.image & mask_BT)

    def of(self, kind: str) -> Tensor:
        """Return the mask of `kind`: all, image, text, prompt, answer or last; shape (B, T)."""
        if kind == "answer":
            return self.text & ~self.prompt
        mask: Tensor = getattr(self, kind)
        return mask


def token_masks(batch: Mapping[str, Tensor], anatomy: Anatomy) -> TokenMasks:
    """Return what the positions of a collated `batch` hold, on the batch's device.

    Answers are where `labels` are not -100. Where `position_ids` (B, T) restart inside a row, the row holds several
    samples.
    """
    ids_BT = batch["input_ids"]
    mask = batch.get("attention_mask")
    attended_BT = mask.bool() if mask is not None and mask.shape == ids_BT.shape else torch.ones_like(ids_BT).bool()
    labels, positions = batch.get("labels"), batch.get("position_ids")
    return TokenMasks(
        attended_BT,
        anatomy.image_mask(ids_BT) & attended_BT,
        None if labels is None else (labels != IGNORED) & attended_BT,
        None if positions is None or positions.shape != ids_BT.shape else packed_samples(positions, attended_BT),
    )


def packed_samples(position_ids_BT: Tensor, attended_BT: Tensor) -> Tensor | None:
    """Return the number of the sample at each position, shape (B, T), or None where each row holds one sample.

    A sample starts with each row, and where positions do not rise by one; padding belongs to the sample before it.
    """
    starts_BT = torch.ones_like(attended_BT)
    starts_BT[:, 1:] = (position_ids_BT.diff(dim=1) != 1) & attended_BT[:, 1:]
    # Padding on the left counts on from the row's start, and so does the first sample after it.
    first_BT = attended_BT & (attended_BT.cumsum(1) == 1)
    starts_BT &= ~first_BT
    starts_BT[:, 0] = True
    numbers_BT = starts_BT.flatten().cumsum(0).view_as(attended_BT) - 1
    return None if int(numbers_BT.max()) + 1 == len(attended_BT) else numbers_BT

"""Positions of answer tokens in a batch, with cross entropy, accuracy and KL divergence of their logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from striate.data.label_mask import IGNORED

_LOGITS_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class Answers:
    """The N positions of a batch that predict an answer token, and those tokens' ids: shape (N,) each.

    Attributes:
        rows: the sample of each position.
        columns: its place in the sample.
        targets: the answer token that comes next.
        samples: B.
    """

    rows: Tensor
    columns: Tensor
    targets: Tensor
    samples: int

    @classmethod
    def of(cls, labels_BT: Tensor) -> Answers:
        """Return the answers that `labels_BT` marks, on its device; that of the CPU avoids waiting for another one."""
        rows, columns = (labels_BT[:, 1:] != IGNORED).nonzero(as_tuple=True)
        return cls(rows, columns, labels_BT[rows, columns + 1], len(labels_BT))

    def to(self, device: torch.device) -> Answers:
        """Return the answers on `device`."""
        return Answers(self.rows.to(device), self.columns.to(device), self.targets.to(device), self.samples)

    def per_sample(self, values_N: Tensor) -> Tensor:
        """Return the sum over each sample's positions, float32, shape (B,)."""
        return values_N.new_zeros(self.samples, dtype=torch.float32).index_add_(0, self.rows, values_N.float())

    @property
    def counts(self) -> Tensor:
        """The number of answer tokens of each sample, shape (B,)."""
        return self.per_sample(torch.ones_like(self.rows, dtype=torch.float32))


def answer_losses(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return the cross entropy at each position in nats, float32, shape (N,)."""
    return _in_chunks(
        lambda logits, targets: cross_entropy(logits.float(), targets, reduction="none"), logits_NV, targets_N
    )


def answer_hits(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return 1 where the likeliest token is the answer's and 0 elsewhere, float32, shape (N,)."""
    return (logits_NV.argmax(-1) == targets_N).float()


def divergence(plain_NV: Tensor, altered_NV: Tensor) -> Tensor:
    """Return KL(softmax(plain) || softmax(altered)) at each position in nats, float32, shape (N,)."""
    return _in_chunks(_divergence, plain_NV, altered_NV)


def _divergence(plain_NV: Tensor, altered_NV: Tensor) -> Tensor:
    plain, altered = plain_NV.float().log_softmax(-1), altered_NV.float().log_softmax(-1)
    return kl_div(altered, plain, reduction="none", log_target=True).sum(-1)


def _in_chunks(work: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Return `work` on all positions, a few at a time, so that no float32 copy of all logits is made."""
    size = max(1, _LOGITS_AT_ONCE // max(1, first.shape[-1]))
    pairs = zip(first.split(size), second.split(size), strict=True)
    return torch.cat([work(part, other_part) for part, other_part in pairs])

"""Gradient synchronisation by all-reduce after the backward pass, in buckets: for LISA, whose layers open in turn.

DistributedDataParallel makes its buckets once, of all tensors that then need gradients: those of closed layers would
travel and take memory in every step. Here the open ones alone do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

BUCKET_BYTES = 32 * 2**20


class GradientSync:
    """Averages over all ranks the gradients of a model's tensors, of which some train now and others may later."""

    def __init__(self, parameters: Iterable[nn.Parameter], may_lack_gradients: bool = False) -> None:
        """Take the tensors that train, now or at another time, in the same order on every rank.

        `may_lack_gradients` is true when one may have none, on some rank or on all: an expert that got no token.
        """
        self._parameters = list(parameters)
        self._may_lack_gradients = may_lack_gradients
        self._world_size = torch.distributed.get_world_size()

    def broadcast_parameters(self) -> None:
        """Give every rank the main one's values; all must ask."""
        for parameter in self._parameters:
            torch.distributed.broadcast(parameter.data, src=0)

    def average_gradients(self) -> None:
        """Replace the gradients of all tensors that now train by their mean over the ranks; all must ask.

        A tensor that took no part on any rank keeps no gradient, so that the optimizer leaves it alone.
        """
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        if self._may_lack_gradients and trained:
            counts = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
            torch.distributed.all_reduce(counts)
            trained = [parameter for parameter, count in zip(trained, counts.tolist(), strict=True) if count]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in trained if parameter.grad is not None]):
            self._average(bucket)

    def _average(self, gradients: Sequence[Tensor]) -> None:
        """Replace gradients of one number format by their mean."""
        alone = len(gradients) == 1 and gradients[0].is_contiguous()
        flat = gradients[0] if alone else torch.cat([gradient.reshape(-1) for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat.div_(self._world_size)
        if not alone:
            parts = flat.split([gradient.numel() for gradient in gradients])
            means = [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
            torch._foreach_copy_(list(gradients), means)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the gradients in groups of one number format and about `BUCKET_BYTES`; a larger one is alone."""
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        bucket: list[Tensor] = []
        size = 0
        for gradient in gradients:
            if gradient.dtype is not dtype:
                continue
            if bucket and size + gradient.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(gradient)
            size += gradient.nbytes
        if bucket:
            yield bucket

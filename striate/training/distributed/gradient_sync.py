"""Gradients of several processes, averaged after the backward pass: for tensors that take turns to train.

DistributedDataParallel exchanges buckets of all tensors that need gradients when it is made: those of closed layers
would travel and take memory in every step. Here the open ones alone do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

# Small gradients go together in messages of about as many bytes.
MESSAGE = 32 * 2**20


class Exchange:
    """The processes' gradients of a model's tensors, of which some train and others may tomorrow."""

    def __init__(self, parameters: Iterable[nn.Parameter], uneven: bool = False) -> None:
        """Take the tensors that train, now or at another time, in the same order on every process.

        `uneven` is true when one may lack a gradient, on some process or on all: an expert that no token was led to.
        """
        self._parameters = list(parameters)
        self._uneven = uneven
        self._count = torch.distributed.get_world_size()

    def begin(self) -> None:
        """Give every process the first one's values; all must ask."""
        for parameter in self._parameters:
            torch.distributed.broadcast(parameter.data, src=0)

    def average(self) -> None:
        """Replace the gradients of all tensors that now train by their mean over the processes; all must ask.

        A tensor that took no part on any process keeps no gradient, so that the optimizer leaves it alone.
        """
        taking = [parameter for parameter in self._parameters if parameter.requires_grad]
        if self._uneven and taking:
            counts = torch.tensor([float(one.grad is not None) for one in taking], device=taking[0].device)
            torch.distributed.all_reduce(counts)
            taking = [one for one, count in zip(taking, counts.tolist(), strict=True) if count]
        for parameter in taking:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for message in _messages([one.grad for one in taking if one.grad is not None]):
            self._send(message)

    def _send(self, gradients: Sequence[Tensor]) -> None:
        """Replace gradients of one number format by their mean."""
        alone = len(gradients) == 1 and gradients[0].is_contiguous()
        flat = gradients[0] if alone else torch.cat([one.reshape(-1) for one in gradients])
        torch.distributed.all_reduce(flat)
        flat.div_(self._count)
        if not alone:
            parts = flat.split([one.numel() for one in gradients])
            torch._foreach_copy_(list(gradients), [p.view_as(one) for p, one in zip(parts, gradients, strict=True)])


def _messages(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the gradients in groups of one number format and about `MESSAGE` bytes; a larger one is alone."""
    for dtype in sorted({one.dtype for one in gradients}, key=str):
        group: list[Tensor] = []
        size = 0
        for one in gradients:
            if one.dtype is not dtype:
                continue
            if group and size + one.nbytes > MESSAGE:
                yield group
                group, size = [], 0
            group.append(one)
            size += one.nbytes
        if group:
            yield group

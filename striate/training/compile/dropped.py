"""Narrow products of dropped values, h_i = A_i (m_i * x): dropout from a counter, no mask and no dropped copy kept.

    dL/dx = sum over i of m_i * (A_i^T dL/dh_i),   dL/dA_i = dL/dh_i (m_i * x)^T

Each i draws a mask m_i of its own, made again from the keys wherever it is needed. Kernels read x once for all i on the
way forward, and write its gradient once on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from striate.training.compile.kernels import HAS_TRITON, runs_triton

# The two multipliers of a 32-bit integer finaliser of low bias (github.com/skeeto/hash-prospector), as signed numbers.
FIRST, SECOND = 0x7FEB352D, 0x846CA68B - 2**32
# 2**32 over the golden ratio, odd: neighbouring columns begin far apart.
STRIDE = 0x9E3779B9 - 2**32
# Ranks that one program of the kernels holds.
_WIDEST = 256


def kept(keys: Tensor, columns: int, probability: float) -> Tensor:
    """Return which values dropout keeps, bool (..., columns), each with probability 1 - `probability`.

    Value c of a row is kept when hash(key + c x stride) lies in the upper share of the 32-bit numbers. The hash is a
    bijection, so over random keys every value is uniform, to 2^-32; the same keys give the same mask again.

    Args:
        keys: int32 (...), one random number a row, over the whole range of the type.
        columns: values a row.
        probability: of dropping a value.
    """
    counter = torch.arange(columns, device=keys.device, dtype=torch.int32) * STRIDE
    bits = keys.unsqueeze(-1) + counter
    # Shifts of signed numbers bring copies of the sign in; the mask takes them away.
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * FIRST
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * SECOND
    return bits >= threshold(probability)


def threshold(probability: float) -> int:
    """Return the least hash, as a signed number, whose value is kept."""
    return round(probability * 2**32) - 2**31


def draw_keys(count: int, shape: torch.Size, device: torch.device) -> Tensor:
    """Return random keys for `kept`, int32 (count, *shape), from PyTorch's generator of the device."""
    return torch.randint(-(2**31), 2**31, (count, *shape), dtype=torch.int32, device=device)


def narrow_products(
    hidden: Tensor, keys: Sequence[Tensor], factors: Sequence[Tensor], probability: float
) -> list[Tensor]:
    """Return every h_i (..., r), still to be scaled by 1 / (1 - `probability`).

    Args:
        hidden: x (..., columns).
        keys: int32 (...) for each i, see `kept`.
        factors: every A_i (r, columns).
        probability: of dropping a value.
    """
    if has_kernels(hidden, factors):
        found: Tensor = Narrow.apply(hidden, torch.stack(list(keys)), torch.stack(list(factors)), probability)
        return list(found.unbind(0))
    # Within a compiled graph this keeps neither the mask nor the dropped input: both come back from the keys.
    dropped = [checkpoint(_drop, hidden, key, probability, use_reentrant=False) for key in keys]
    return [linear(one, factor) for one, factor in zip(dropped, factors, strict=True)]


class Narrow(torch.autograd.Function):
    """All h_i, (n, ..., r), by the operators below."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, keys: Tensor, factors: Tensor, probability: float) -> Tensor:
        """Return the products.

        Args:
            ctx: keeps what the backward pass needs.
            hidden: x (..., columns).
            keys: int32 (n, ...), see `kept`.
            factors: all A_i, (n, r, columns).
            probability: of dropping a value.
        """
        ctx.probability = probability
        ctx.save_for_backward(hidden, keys, factors)
        return narrow(hidden, keys, factors, probability)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of all A_i."""
        hidden, keys, factors = ctx.saved_tensors
        gradient = gradients[0]
        rows = [one.reshape(-1, one.shape[-1]) for one in gradient.unbind(0)]
        # Dropped again, not kept: a compiler that finds nothing of the gradient in the keys does it on the way forward.
        late = keys ^ (gradient.flatten()[:1].to(torch.int32) & 0)
        dropped = [_drop(hidden, key, ctx.probability) for key in late.unbind(0)]
        trained = [one.t() @ other.reshape(-1, other.shape[-1]) for one, other in zip(rows, dropped, strict=True)]
        towards = narrow_back(gradient, keys, factors, ctx.probability) if ctx.needs_input_grad[0] else None
        return towards, None, torch.stack(trained), None


@torch.library.custom_op("striate::narrow", mutates_args=())
def narrow(hidden: Tensor, keys: Tensor, factors: Tensor, probability: float) -> Tensor:
    """Return what `Narrow` does; each x is read once for all i."""
    if not runs_triton(hidden):
        return _narrow(hidden, keys, factors, probability)
    from striate.training.compile.dropped_kernel import launch

    found = hidden.new_empty((*keys.shape, factors.shape[1]))
    launch(hidden.reshape(-1, hidden.shape[-1]), keys, factors, found, threshold(probability))
    return found


@torch.library.custom_op("striate::narrow_back", mutates_args=())
def narrow_back(gradient: Tensor, keys: Tensor, factors: Tensor, probability: float) -> Tensor:
    """Return the gradient of x (..., columns), given that of all h_i (n, ..., r)."""
    if not runs_triton(gradient):
        return _narrow_back(gradient, keys, factors, probability)
    from striate.training.compile.dropped_kernel import launch_back

    found = gradient.new_empty((*keys.shape[1:], factors.shape[-1]))
    launch_back(gradient.contiguous(), keys, factors, found, threshold(probability))
    return found


@narrow.register_fake
def _(hidden: Tensor, keys: Tensor, factors: Tensor, probability: float) -> Tensor:
    """Return what the result looks like."""
    return hidden.new_empty((*keys.shape, factors.shape[1]))


@narrow_back.register_fake
def _(gradient: Tensor, keys: Tensor, factors: Tensor, probability: float) -> Tensor:
    """Return what the result looks like."""
    return gradient.new_empty((*keys.shape[1:], factors.shape[-1]))


def _narrow(hidden: Tensor, keys: Tensor, factors: Tensor, probability: float) -> Tensor:
    """Return the products by PyTorch's own operators."""
    pairs = zip(keys.unbind(0), factors.unbind(0), strict=True)
    return torch.stack([linear(_drop(hidden, key, probability), factor) for key, factor in pairs])


def _narrow_back(gradient: Tensor, keys: Tensor, factors: Tensor, probability: float) -> Tensor:
    """Return the gradient of x by PyTorch's own operators."""
    parts = zip(gradient.unbind(0), keys.unbind(0), factors.unbind(0), strict=True)
    first, *others = [_drop(one @ factor, key, probability) for one, key, factor in parts]
    for other in others:
        first = first + other
    return first


def _drop(hidden: Tensor, keys: Tensor, probability: float) -> Tensor:
    """Return `hidden` with values dropped."""
    return torch.where(kept(keys, hidden.shape[-1], probability), hidden, 0.0)


def has_kernels(hidden: Tensor, factors: Sequence[Tensor]) -> bool:
    """Return whether there are kernels for these: half precision on a CUDA device, equal and moderate ranks."""
    ranks = {one.shape[0] for one in factors}
    return HAS_TRITON and hidden.is_cuda and hidden.element_size() == 2 and len(ranks) == 1 and max(ranks) <= _WIDEST

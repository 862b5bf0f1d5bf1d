"""Causal attention of short samples as one operator that compilers take as it is, with its gradients.

Kernels for long sequences work in tiles of 64 or 128 tokens and keep, convert and add up what one tile would have at
hand. For samples that are one tile themselves `short_kernels` does it in one launch each way.
"""

from __future__ import annotations

from typing import Any

import torch

from striate.training.compile.kernels import HAS_TRITON, runs_triton

# Tokens of a sample, and sizes of a head: powers of two from 16.
LONGEST, HEADS = 128, (16, 32, 64, 128)
_HALF = (torch.bfloat16, torch.float16)


def fits(query: torch.Tensor, value: torch.Tensor, longest: int) -> bool:
    """Return whether the kernels take these tensors (B, heads, T, head size), of samples of at most `longest`."""
    size = query.shape[-1]
    usable = query.device.type == "cuda" and query.dtype in _HALF and HAS_TRITON
    return usable and longest <= LONGEST and size in HEADS and size == value.shape[-1]


@torch.library.custom_op("striate::short_attention", mutates_args=())
def short_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return (B, T, heads, head size): every token attends to those of its sample up to itself.

    Args:
        query: (B, heads, T, head size).
        key: (B, key-value heads, T, head size).
        value: as `key`.
        ends: 0 and the end of each sample of one row (B = 1), int32; without it every row is a sample.
        scale: of the products of queries and keys.
    """
    batch, heads, tokens, size = query.shape
    output = query.new_empty((batch, tokens, heads, size))
    if not runs_triton(query):
        return output.copy_(_plain(query, key, value, ends, scale).transpose(1, 2))
    query, key, value = (_by_token(tensor) for tensor in (query, key, value))
    from striate.training.compile.short_kernels import forward_kernel

    given = (query, key, value, output, ends if ends is not None else query, tokens, scale)
    strides = [stride for tensor in (query, key, value) for stride in (tensor.stride(2), tensor.stride(1))]
    forward_kernel[_grid(query, key, ends)](*given, *strides, heads * size, **_settings(query, key, ends))
    return output


@torch.library.custom_op("striate::short_attention_backward", mutates_args=())
def short_attention_backward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gradient: torch.Tensor,
    ends: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of queries, keys and values, formed like these; `gradient` is (B, T, heads, head size)."""
    found = tuple(_like(tensor) for tensor in (query, key, value))
    if not runs_triton(query):
        plain = _plain_backward(query, key, value, gradient.transpose(1, 2), ends, scale)
        return tuple(one.copy_(other) for one, other in zip(found, plain, strict=True))  # type: ignore[return-value]
    query, key, value, gradient = (_by_token(tensor) for tensor in (query, key, value, gradient.transpose(1, 2)))
    from striate.training.compile.short_kernels import backward_kernel

    given = (query, key, value, gradient, *found, ends if ends is not None else query, query.shape[2], scale)
    tensors = (query, key, value, gradient)
    strides = [stride for tensor in tensors for stride in (tensor.stride(2), tensor.stride(1))]
    wide, narrow = (tensor.shape[1] * tensor.shape[3] for tensor in (query, key))
    backward_kernel[_grid(query, key, ends)](*given, *strides, wide, narrow, **_settings(query, key, ends))
    return found  # type: ignore[return-value]


@short_attention.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return what the result looks like."""
    batch, heads, tokens, size = query.shape
    return query.new_empty((batch, tokens, heads, size))


@short_attention_backward.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gradient: torch.Tensor,
    ends: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what the results look like."""
    return _like(query), _like(key), _like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Keep the inputs: their tiles are all that the backward pass needs."""
    query, key, value, ends, scale = inputs
    ctx.save_for_backward(query, key, value, ends)
    ctx.scale = scale


def _differentiate(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of the inputs."""
    query, key, value, ends = ctx.saved_tensors
    return *short_attention_backward(query, key, value, gradient, ends, ctx.scale), None, None


short_attention.register_autograd(_differentiate, setup_context=_keep)


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return (B, heads, T, head size) by PyTorch's own operators, one call a sample."""
    parts = [
        _weights(one, other, scale) @ _shared(third, one) for one, other, third in _samples(ends, query, key, value)
    ]
    return torch.cat(parts, dim=2)


def _plain_backward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gradient: torch.Tensor,
    ends: torch.Tensor | None,
    scale: float,
) -> list[torch.Tensor]:
    """Return the gradients in the same way; `gradient` (B, heads, T, head size)."""
    parts = []
    for one, other, third, given in _samples(ends, query, key, value, gradient):
        weights = _weights(one, other, scale)
        to_weights = given @ _shared(third, one).mT
        to_scores = weights * (to_weights - (weights * to_weights).sum(-1, keepdim=True)) * scale
        wide = (to_scores.mT @ one, weights.mT @ given)
        summed = (tensor.unflatten(1, (other.shape[1], -1)).sum(2) for tensor in wide)
        parts.append((to_scores @ _shared(other, one), *summed))
    return [torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True)]


def _weights(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the softmax weights (B, heads, T, T) of one sample."""
    scores = query @ _shared(key, query).mT * scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(-1)


def _shared(tensor: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Return keys or values once for each query head."""
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)


def _samples(ends: torch.Tensor | None, *tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Return the tensors cut into samples; all rows together where each is one."""
    if ends is None:
        return [tensors]
    lengths = ends.diff().tolist()
    return list(zip(*(tensor.split(lengths, dim=2) for tensor in tensors), strict=True))


def _by_token(tensor: torch.Tensor) -> torch.Tensor:
    """Return (B, heads, T, head size) whose rows of one token lie together, and whose tokens go on from row to row."""
    together = tensor.stride(3) == 1 and (
        tensor.shape[0] == 1 or tensor.stride(0) == tensor.stride(2) * tensor.shape[2]
    )
    return tensor if together else tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """Return memory (B, heads, T, head size) whose tokens come first."""
    batch, heads, tokens, size = tensor.shape
    return tensor.new_empty((batch, tokens, heads, size)).transpose(1, 2)


def _grid(query: torch.Tensor, key: torch.Tensor, ends: torch.Tensor | None) -> tuple[int, int]:
    """Return how many samples and groups of heads there are."""
    return query.shape[0] if ends is None else ends.shape[0] - 1, key.shape[1]


def _settings(query: torch.Tensor, key: torch.Tensor, ends: torch.Tensor | None) -> dict[str, Any]:
    """Return what the kernels are compiled for."""
    tile = LONGEST if ends is not None else max(16, 1 << (query.shape[2] - 1).bit_length())
    sizes = {"GROUP": query.shape[1] // key.shape[1], "T": tile, "D": query.shape[3], "PACKED": ends is not None}
    return {**sizes, "num_warps": 4 if tile < LONGEST else 8, "num_stages": 1}

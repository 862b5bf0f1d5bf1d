"""Variable-length causal attention over samples that lie one after the other, told apart by `cu_seqlens`.

On CUDA in half precision it is PyTorch's kernel (`torch.nn.attention.varlen`), elsewhere scaled dot-product attention
with a mask. `torch.compile` traces both with fullgraph=True.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

# The head sizes that the kernel takes: multiples of 8 up to this.
_LARGEST_HEAD = 256
# What some families' attention adds to a causal softmax, by the keyword of their attention function.
BEYOND_CAUSAL = {
    "softcap": "a cap of scores",
    "s_aux": "attention sinks",
    "position_bias": "a bias by position",
    "cache": "a paged cache",
    "is_causal": "causality of its own",
}


def _find_kernel() -> tuple[Callable[..., Any] | None, bool]:
    """Return PyTorch's kernel, from 2.11 on (2.10's has neither scale nor window), and whether it does GQA."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, False
    names = inspect.signature(varlen_attn).parameters.keys()
    kernel: Callable[..., Any] | None = varlen_attn if {"scale", "window_size"} <= names else None
    return kernel, "enable_gqa" in names


# Looked up at import: a compiler can't trace the search.
KERNEL, _ENABLE_GQA = _find_kernel()


def kernel_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the kernel runs for tensors of `dtype` on `device`."""
    return KERNEL is not None and device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def has_kernel(query: Tensor, value: Tensor) -> bool:
    """Return whether the kernel runs for these tensors, (..., head size) each; else `attend` uses a mask."""
    size = query.shape[-1]
    fits = size % 8 == 0 and size <= _LARGEST_HEAD and value.shape[-1] == size
    return fits and kernel_runs(query.device, query.dtype)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    key_cu_seqlens: Tensor | None = None,
    key_max_seqlen: int | None = None,
) -> Tensor:
    """Return causal attention within each sample, (1, N, heads, head size).

    Where a sample has more keys than queries, its queries are those of its last keys.

    Args:
        query: (1, heads, N, head size).
        key: (1, key-value heads, K, head size).
        value: as `key`.
        cu_seqlens: 0 and the end of each sample's queries, int32.
        max_seqlen: an upper bound of the queries of a sample.
        scaling: of the products of queries and keys; 1 / sqrt(head size) if None.
        sliding_window: how many tokens a query sees, its own included; None for all before it.
        key_cu_seqlens: 0 and the end of each sample's keys, int32; None where keys are of the queries' tokens.
        key_max_seqlen: an upper bound of the keys of a sample; needed with `key_cu_seqlens`.
    """
    if key_cu_seqlens is None or key_max_seqlen is None:
        key_cu_seqlens, key_max_seqlen = cu_seqlens, max_seqlen
    kernel = KERNEL if has_kernel(query, value) else None
    groups = query.shape[1] // key.shape[1]
    grouped = groups > 1 and kernel is not None and _ENABLE_GQA
    if groups > 1 and not grouped:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if kernel is None:
        seen = _mask(cu_seqlens, query.shape[2], key_cu_seqlens, key.shape[2], sliding_window)
        out = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
        return out.transpose(1, 2).contiguous()
    settings: dict[str, Any] = {"enable_gqa": True} if grouped else {}
    settings["window_size"] = (sliding_window - 1, 0) if sliding_window else (-1, 0)
    flat = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]
    packed: Tensor = kernel(*flat, cu_seqlens, key_cu_seqlens, max_seqlen, key_max_seqlen, scale=scaling, **settings)
    return packed.unsqueeze(0)


def varlen_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    max_length_q: int,
    max_length_k: int,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return `attend` in the form of transformers' attention functions, (1, N, heads, head size) and no weights.

    The four keywords of lengths are those of transformers' `FlashAttentionKwargs`.

    Raises:
        NotImplementedError: this attention has more than causality and a window.
    """
    beyond = {"a mask of its own": attention_mask, "dropout": dropout or None}
    beyond |= {what: kwargs.get(name) for name, what in BEYOND_CAUSAL.items()}
    if extra := [what for what, value in beyond.items() if value is not None]:
        raise NotImplementedError(f"variable-length attention with {', '.join(extra)}")
    how: dict[str, Any] = {"scaling": scaling, "sliding_window": sliding_window}
    how |= {"key_cu_seqlens": cu_seq_lens_k, "key_max_seqlen": max_length_k}
    return attend(query, key, value, cu_seq_lens_q, max_length_q, **how), None


def _mask(cu_seqlens: Tensor, queries: int, key_cu_seqlens: Tensor, keys: int, window: int | None) -> Tensor:
    """Return which keys each query sees, (N, K): earlier ones of its sample, within the window."""
    sample, following = _from_end(cu_seqlens, queries)
    key_sample, key_following = _from_end(key_cu_seqlens, keys)
    distance = key_following - following[:, None]
    seen = (sample[:, None] == key_sample) & (distance >= 0)
    return seen & (distance < window) if window else seen


def _from_end(cu_seqlens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the sample of each of `count` tokens, and how many tokens of it follow."""
    place = torch.arange(count, device=cu_seqlens.device)
    sample = (place[:, None] >= cu_seqlens[None, 1:]).sum(1)
    return sample, cu_seqlens[1:][sample] - place

"""Attention within each sample of a packed row that a compiler can follow: the samples' ends are a tensor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from striate.training.compile.short_attention import LONGEST as SHORT
from striate.training.compile.short_attention import fits, short_attention
from striate.training.compile.short_choice import short_active

# Under which name attention of packed rows is registered with transformers.
PACKED = "striate_packed"
# What some families' attention adds, and a plain causal softmax has not.
REFUSED = {"s_aux": "attention sinks", "position_bias": "a bias by position", "cache": "a paged cache"}
# Names under which a layer hands the samples' ends on to its attention.
ENDS, LONGEST = "packed_ends", "packed_longest"
# The kernel wants an upper bound of the lengths; few different ones, since each is compiled.
_LEAST_BOUND = 2048
_LARGEST_HEAD = 256


def _varlen_kernel() -> tuple[Callable[..., Any] | None, bool]:
    """Return PyTorch's variable-length kernel where it has a scale and a window, and whether heads may share keys."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, False
    names = inspect.signature(varlen_attn).parameters.keys()
    return varlen_attn if {"scale", "window_size"} <= names else None, "enable_gqa" in names


# Found once: a compiler can't follow the search.
_KERNEL, _SHARES_KEYS = _varlen_kernel()


def takes(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether `attend` has a way for tensors of this type on this device: on CUDA only the kernel."""
    return device.type != "cuda" or (_KERNEL is not None and dtype in (torch.bfloat16, torch.float16))


def refuse_more(kwargs: dict[str, Any]) -> None:
    """Raise NotImplementedError for attention of a compiled layer that has more than causality and a window."""
    extra = [name for name in (*REFUSED, "is_causal") if kwargs.get(name) is not None]
    if extra:
        raise NotImplementedError(f"packed rows with {', '.join(extra)}")


def packed_inputs(lengths: Sequence[int], ends: torch.Tensor) -> dict[str, Any]:
    """Return what a layer's attention must be handed to keep the samples of the row apart.

    Args:
        lengths: tokens of each sample.
        ends: 0 and the end of each sample, int32, on the row's device.
    """
    # Rows differ in how many samples they hold.
    torch._dynamo.maybe_mark_dynamic(ends, 0)
    most = max(lengths)
    if most <= SHORT and short_active():
        return {ENDS: ends, LONGEST: SHORT}
    return {ENDS: ends, LONGEST: max(_LEAST_BOUND, 1 << (most - 1).bit_length())}


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    ends: torch.Tensor,
    longest: int,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    key_ends: torch.Tensor | None = None,
    key_longest: int | None = None,
    masked: bool = False,
) -> torch.Tensor:
    """Return (1, T, heads, head size), as `packed_attention` does: causal attention within each sample.

    Where samples have more keys than queries, the queries are those of their last keys.

    Args:
        query: (1, heads, T, head size).
        key: (1, key-value heads, T, head size).
        value: as `key`.
        attention_mask: a family's own mask, which this can't follow.
        ends: 0 and the end of each sample, int32.
        longest: at least the tokens of the longest sample.
        dropout: of attention weights.
        scaling: of the products of queries and keys.
        sliding_window: how many tokens a query sees, its own included.
        softcap: a cap of scores, which this can't follow.
        key_ends: 0 and the end of each sample's keys, int32; None if these are of as many tokens as the queries.
        key_longest: at least the keys of the longest sample.
        masked: whether a mask stands in for the kernel where there is none.

    Raises:
        NotImplementedError: this attention has more than causality and a window, or no kernel on this card.
    """
    if attention_mask is not None or softcap is not None or dropout:
        raise NotImplementedError("packed rows with a mask, a cap or dropout of the family's own")
    whole = key_ends is None and (not sliding_window or sliding_window >= longest)
    if whole and longest <= SHORT and fits(query, value, longest):
        return short_attention(query, key, value, ends, query.shape[-1] ** -0.5 if scaling is None else scaling)
    groups = query.shape[1] // key.shape[1]
    on_card = query.device.type == "cuda" and not (masked and not takes(query.device, query.dtype))
    if groups > 1 and not (on_card and _SHARES_KEYS):
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if not on_card:
        mask = _mask(ends, query.shape[2], ends if key_ends is None else key_ends, key.shape[2], sliding_window)
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
        return out.transpose(1, 2).contiguous()
    size = query.shape[-1]
    half = query.dtype in (torch.bfloat16, torch.float16)
    if _KERNEL is None or not half or size % 8 or size > _LARGEST_HEAD or value.shape[-1] != size:
        raise NotImplementedError("packed rows without PyTorch's variable-length attention kernel")
    settings: dict[str, Any] = {"enable_gqa": True} if groups > 1 and _SHARES_KEYS else {}
    settings["window_size"] = (sliding_window - 1, 0) if sliding_window else (-1, 0)
    flat = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]
    if key_ends is None or key_longest is None:
        key_ends, key_longest = ends, longest
    packed: torch.Tensor = _KERNEL(*flat, ends, key_ends, longest, key_longest, scale=scaling, **settings)
    return packed.unsqueeze(0)


def _mask(ends: torch.Tensor, tokens: int, key_ends: torch.Tensor, keys: int, window: int | None) -> torch.Tensor:
    """Return which keys (T, K) each token sees: earlier ones of its sample, within the window."""
    sample, left = _from_end(ends, tokens)
    key_sample, key_left = _from_end(key_ends, keys)
    behind = key_left - left[:, None]
    seen = (sample[:, None] == key_sample) & (behind >= 0)
    return seen & (behind < window) if window else seen


def _from_end(ends: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sample of each of `count` tokens, and how many tokens of it follow."""
    place = torch.arange(count, device=ends.device)
    sample = (place[:, None] >= ends[None, 1:]).sum(1)
    return sample, ends[1:][sample] - place

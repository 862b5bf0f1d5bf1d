"""Attention within each sample of a packed row that a compiler can follow: the samples' ends are a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from striate.models.interventions import varlen_attention
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
) -> torch.Tensor:
    """Return (1, T, heads, head size), as `packed_attention` does: causal attention within each sample.

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

    Raises:
        NotImplementedError: this attention has more than causality and a window, or no kernel on this card.
    """
    if attention_mask is not None or softcap is not None or dropout:
        raise NotImplementedError("packed rows with a mask, a cap or dropout of the family's own")
    whole = not sliding_window or sliding_window >= longest
    if whole and longest <= SHORT and fits(query, value, longest):
        return short_attention(query, key, value, ends, query.shape[-1] ** -0.5 if scaling is None else scaling)
    if query.device.type == "cuda" and not varlen_attention.has_kernel(query, value):
        raise NotImplementedError("packed rows without PyTorch's variable-length attention kernel")
    how: dict[str, Any] = {"scaling": scaling, "sliding_window": sliding_window}
    return varlen_attention.attend(query, key, value, ends, longest, **how)

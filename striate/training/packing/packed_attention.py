"""Attention within each sample of a packed row, for any decoder that attends through transformers' interface.

Where attention is causal, with or without a window, it is one call of variable-length attention (`cu_seqlens`). Where a
family's own mask is more than causal, and on a CPU without the compiler, it is one call of scaled dot-product attention
a sample. All are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import sdpa_mask

from striate.errors import TrainingError
from striate.models.interventions.varlen_attention import attend, has_kernel, varlen_attention_forward
from striate.models.structure.decoder_stack import decoder_layers, find_stack

NAME = "striate_packed"
# What some families' attention adds, and a plain causal softmax has not.
_REFUSED = {"s_aux": "attention sinks", "position_bias": "a bias by position", "cache": "a paged cache"}
# Marks the attention's modules: others that share a config attend as they are.
_MARK = "_striate_reads_packed_rows"
# `cu_seqlens` is filled up to a multiple of this, and an upper bound of lengths is a power of 2 from that on: each
# other form is compiled.
_SAMPLES, _LEAST_BOUND = 64, 2048


@dataclass
class PackedRow:
    """The row in work.

    Attributes:
        lengths: tokens of each sample.
        cu_seqlens: 0 and the end of each sample, int32, on the row's device; the last one several times.
        max_seqlen: an upper bound of the lengths.
        windows: the sliding window of every attention module that was called uncompiled, by its id.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    max_seqlen: int
    windows: dict[int, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> PackedRow:
        """Return the row of samples of these lengths."""
        ends = [0, *accumulate(lengths)]
        ends += ends[-1:] * (-len(ends) % _SAMPLES)
        cu_seqlens = torch.tensor(ends, dtype=torch.int32).to(device, non_blocking=True)
        torch._dynamo.maybe_mark_dynamic(cu_seqlens, 0)
        return cls(tuple(lengths), cu_seqlens, max(_LEAST_BOUND, 1 << (max(lengths) - 1).bit_length()))


# Not a context variable: the backward pass computes checkpointed layers again in a thread of its own.
_row: list[PackedRow | None] = [None]


@contextmanager
def packed_attention_of(model: nn.Module) -> Iterator[None]:
    """Let the decoder layers of `model` attend by `packed_attention` for a while."""
    modules = [module for layer in decoder_layers(model) for module in layer.modules()]
    holders = (getattr(module, "config", None) for module in find_stack(model).holder.modules())
    configs = {id(config): config for config in holders if isinstance(config, PretrainedConfig)}.values()
    before = [(config, config._attn_implementation) for config in configs]
    for module in modules:
        setattr(module, _MARK, True)
    for config, _ in before:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop(_MARK, None)
        for config, name in before:
            config._attn_implementation = name


@contextmanager
def reading_row(lengths: Sequence[int], device: torch.device) -> Iterator[PackedRow]:
    """Keep every sample of a row to itself, in the forward pass and in the backward pass of the block."""
    row = PackedRow.of(lengths, device)
    outer, _row[0] = _row[0], row
    try:
        yield row
    finally:
        _row[0] = outer


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return (1, T, heads, head size): every sample of the row in work attends to its own earlier tokens.

    Args:
        module: the attention module of a decoder layer.
        query: (1, heads, T, head size).
        key: (1, key-value heads, T, head size).
        value: as `key`.
        attention_mask: None for causal attention, else the family's own mask (1, 1, T, T), true where it attends.
        dropout: of attention weights.
        scaling: of the products of queries and keys; 1 / sqrt(head size) if None.
        sliding_window: how many tokens a query sees, its own included; None for all before it.
        softcap: c of c * tanh(x / c), applied to the scaled products.
        kwargs: what else the family hands to its attention.

    Raises:
        TrainingError: this attention is not one over the tokens of the row alone.
    """
    marked, compiles = hasattr(module, _MARK), torch.compiler.is_compiling()
    row = _row[0] if marked else None
    if row is not None and not compiles:
        row.windows[id(module)] = sliding_window
    how: dict[str, Any] = {"scaling": scaling, "sliding_window": sliding_window}
    if marked and kwargs.get("cu_seq_lens_q") is not None:
        # Image tokens skip this layer, of a row or of a batch.
        how |= {"dropout": dropout, "softcap": softcap, **kwargs}
        return varlen_attention_forward(module, query, key, value, attention_mask, **how)
    if row is None:
        plain = AttentionInterface()["sdpa"]
        return plain(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    if not compiles:
        _check(row, query, key, kwargs)
    if attention_mask is None and not dropout and softcap is None and (compiles or has_kernel(query, value)):
        return attend(query, key, value, row.cu_seqlens, row.max_seqlen, **how), None
    if compiles:
        # Slices at the samples' ends would be compiled anew for every row.
        torch._dynamo.graph_break("attention within samples of a packed row, by a family's own mask")
    return _by_sample(row, query, key, value, attention_mask, dropout=dropout, softcap=softcap, **how), None


def packed_mask(*args: Any, allow_is_causal_skip: bool = True, **kwargs: Any) -> Tensor | None:
    """Return None for a causal mask, with or without a window; else the family's own, to be cut into samples."""
    if _row[0] is not None and allow_is_causal_skip:
        return None
    return sdpa_mask(*args, allow_is_causal_skip=allow_is_causal_skip, **kwargs)


def refused(why: str) -> TrainingError:
    """Return the error for a model that can't read packed rows, and why."""
    return TrainingError(
        f"train.packing does not work with this model: {why}",
        "a decoder whose layers attend, causally, to the tokens of one row",
        "use train.packing=false",
    )


def _check(row: PackedRow, query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> None:
    """Raise for attention that a packed row can't have."""
    extra = [what for name, what in _REFUSED.items() if kwargs.get(name) is not None]
    if kwargs.get("is_causal") is False:
        extra.append("tokens that see later ones")
    if extra:
        raise refused(f"its attention has {extra[0]}")
    tokens = sum(row.lengths)
    if query.shape[0] != 1 or query.shape[2] != tokens or key.shape[2] != tokens:
        raise refused("its decoder layers attend to something else than the tokens of the row")


def _causal(length: int, window: int, device: torch.device) -> Tensor:
    """Return which tokens each token sees, bool (length, length): itself and those before it, within a window."""
    place = torch.arange(length, device=device)
    distance = place[:, None] - place
    return (distance >= 0) & (distance < window)


def _by_sample(
    row: PackedRow,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sliding_window: int | None,
    **how: Any,
) -> Tensor:
    """Return the row's attention, (1, T, heads, head size), one sample after another."""
    pieces = []
    # The gradient of a split is one row; that of a slice would be a row of zeros for every sample.
    queries, keys, values = (states.split(row.lengths, dim=2) for states in (query, key, value))
    for index, (start, end) in enumerate(pairwise([0, *accumulate(row.lengths)])):
        mask = None if attention_mask is None else attention_mask[..., start:end, start:end]
        if mask is None and sliding_window and end - start > sliding_window:
            mask = _causal(end - start, sliding_window, query.device)
        pieces.append(_one_sample(queries[index], keys[index], values[index], mask, **how))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous()


def _one_sample(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """Return (1, heads, L, head size) of one sample; causal where there is no mask."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if softcap is None:
        causal = mask is None
        return scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal, scale=scaling)
    length = query.shape[2]
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    mask = _causal(length, length, query.device) if mask is None else mask
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else scores + mask
    return drop(torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype), dropout) @ value


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)

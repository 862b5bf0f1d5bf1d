"""Attention within each sample of a packed row, for any decoder that attends through transformers' interface.

On CUDA in half precision it is one call of PyTorch's variable-length kernel (`torch.nn.attention.varlen`); elsewhere,
and where a family's own mask is more than causal, one call of scaled dot-product attention a sample. Both are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import sdpa_mask

from striate.errors import TrainingError
from striate.models.interventions.varlen_attention import attend as varlen
from striate.models.interventions.varlen_attention import has_kernel, varlen_attention_forward
from striate.models.structure.decoder_stack import decoder_layers, find_stack
from striate.training.packing.traced_attention import ENDS, LONGEST, PACKED, REFUSED, attend, refuse_more

NAME = PACKED
_ENDS = 64


@dataclass
class Layout:
    """The samples of the row in work: where each ends, and what the attention modules did with it.

    Attributes:
        lengths: tokens of each sample.
        ends: 0 and the end of each sample, int32, on the row's device; the last one several times.
        modules: ids of the attention's modules; others attend as ever.
        windows: the sliding window of every module that was called, by its id.
    """

    lengths: tuple[int, ...]
    ends: torch.Tensor
    modules: frozenset[int]
    windows: dict[int, int | None] = field(default_factory=dict)


# Not a context variable: the backward pass computes checkpointed layers again in a thread of its own.
_current: list[Layout | None] = [None]


class PackedRows:
    """Lets one model read packed rows, while told to and only then."""

    def __init__(self, model: nn.Module) -> None:
        """Find the configs that choose the attention of the model's decoder layers, and their modules."""
        holder = find_stack(model).holder
        found = (getattr(module, "config", None) for module in holder.modules())
        self._configs = list({id(config): config for config in found if isinstance(config, PretrainedConfig)}.values())
        self._modules = frozenset(id(module) for layer in decoder_layers(model) for module in layer.modules())

    @contextmanager
    def attending(self, lengths: Sequence[int], device: torch.device) -> Iterator[Layout]:
        """Keep every sample of the row to itself, in the forward pass and in the backward pass of the block."""
        places = [0, *accumulate(lengths)]
        # Samples of no tokens at the end let rows of as good as any number of samples have one form.
        places += places[-1:] * (-len(places) % _ENDS)
        ends = torch.tensor(places, dtype=torch.int32).to(device, non_blocking=True)
        layout = Layout(tuple(lengths), ends, self._modules)
        before = [config._attn_implementation for config in self._configs]
        outer, _current[0] = _current[0], layout
        for config in self._configs:
            config._attn_implementation = NAME
        try:
            yield layout
        finally:
            _current[0] = outer
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation = name


def current_layout() -> Layout | None:
    """Return the layout of the packed row in work, or None outside of one."""
    return _current[0]


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
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
    if ENDS in kwargs:
        refuse_more(kwargs)
        how: dict[str, Any] = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window}
        return attend(query, key, value, attention_mask, kwargs[ENDS], kwargs[LONGEST], softcap=softcap, **how), None
    layout = _current[0]
    if layout is None or id(module) not in layout.modules:
        plain = AttentionInterface()["sdpa"]
        return plain(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    layout.windows[id(module)] = sliding_window
    if kwargs.get("cu_seq_lens_q") is not None:
        how = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window, "softcap": softcap}
        return varlen_attention_forward(module, query, key, value, attention_mask, **how, **kwargs)
    _check(layout, query, key, kwargs)
    if attention_mask is None and not dropout and softcap is None and has_kernel(query, value):
        longest = max(layout.lengths)
        out = varlen(query, key, value, layout.ends, longest, scaling=scaling, sliding_window=sliding_window)
        return out, None
    pieces = []
    # The gradient of a split is one row; that of a slice would be a row of zeros for every sample.
    queries, keys, values = (states.split(layout.lengths, dim=2) for states in (query, key, value))
    for index, (start, end) in enumerate(pairwise([0, *accumulate(layout.lengths)])):
        here = slice(start, end)
        mask = None if attention_mask is None else attention_mask[..., here, here]
        if sliding_window and end - start > sliding_window:
            mask = _windowed(mask, end - start, sliding_window, query.device)
        sample = (queries[index], keys[index], values[index])
        pieces.append(_one_sample(*sample, mask, dropout, scaling, softcap))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def packed_mask(*args: Any, allow_is_causal_skip: bool = True, **kwargs: Any) -> torch.Tensor | None:
    """Return None for a causal mask, with or without a window; else the family's own, to be cut into samples."""
    if _current[0] is not None and allow_is_causal_skip:
        return None
    return sdpa_mask(*args, allow_is_causal_skip=allow_is_causal_skip, **kwargs)


def _check(layout: Layout, query: torch.Tensor, key: torch.Tensor, kwargs: dict[str, Any]) -> None:
    """Raise for attention that a packed row can't have."""
    extra = [what for name, what in REFUSED.items() if kwargs.get(name) is not None]
    if kwargs.get("is_causal") is False:
        extra.append("tokens that see later ones")
    if extra:
        raise refused(f"its attention has {extra[0]}")
    tokens = sum(layout.lengths)
    if query.shape[0] != 1 or query.shape[2] != tokens or key.shape[2] != tokens:
        raise refused("its decoder layers attend to something else than the tokens of the row")


def refused(why: str) -> TrainingError:
    """Return the error for a model that can't read packed rows, and why."""
    return TrainingError(
        f"train.packing does not work with this model: {why}",
        "a decoder whose layers attend, causally, to the tokens of one row",
        "use train.packing=false",
    )


def _windowed(mask: torch.Tensor | None, length: int, window: int, device: torch.device) -> torch.Tensor:
    """Return a bool mask (length, length) or `mask`, narrowed to a causal window."""
    place = torch.arange(length, device=device)
    behind = place[:, None] - place
    causal = (behind >= 0) & (behind < window)
    # A family's own mask has its window in it already, and may see later tokens of a picture.
    return causal if mask is None else mask


def _one_sample(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Return (1, heads, L, head size) of one sample; causal where there is no mask."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
    length = query.shape[2]
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = _windowed(None, length, length, query.device)
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return nn.functional.dropout(weights, dropout) @ value


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)

"""Attention of text tokens over their own and image tokens' keys, in a form that a compiler follows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from striate.training.packing.traced_attention import PACKED, attend, refuse_more

NAME = "striate_text_rows"
# Names under which a layer hands on to its attention that only keys are wanted, and the ends of the runs of text.
STOP, ENDS, KEY_ENDS, LONGEST, KEY_LONGEST = "stop", "text_ends", "text_key_ends", "text_longest", "text_key_longest"


def text_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return (B, N, heads, head size): zeros where only keys are wanted, else attention by run or by mask.

    Args:
        module: the attention module of a decoder layer.
        query: (B, heads, N, head size).
        key: (B, key-value heads, K, head size).
        value: as `key`.
        attention_mask: which keys a query sees, (B, 1, N, K); None for runs of text (see `ImageRows`).
        dropout: of attention weights.
        scaling: of the products of queries and keys.
        sliding_window: how many tokens a query sees, its own included.
        softcap: a cap of scores.
        kwargs: what else the family hands to its attention.

    Raises:
        NotImplementedError: this attention has more than causality and a window.
    """
    if kwargs.get(STOP):
        # Made of nothing, so that no query is computed for it.
        batch, heads, tokens, _ = query.shape
        return query.new_zeros(batch, tokens, heads, value.shape[-1]), None
    if ENDS not in kwargs:
        how: dict[str, Any] = {"dropout": dropout, "scaling": scaling, "softcap": softcap, **kwargs}
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **how)
        return found
    refuse_more(kwargs)
    given: dict[str, Any] = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window}
    given |= {"softcap": softcap, "key_ends": kwargs[KEY_ENDS], "key_longest": kwargs[KEY_LONGEST], "masked": True}
    return attend(query, key, value, attention_mask, kwargs[ENDS], kwargs[LONGEST], **given), None


def is_of_text(kwargs: Mapping[str, Any]) -> bool:
    """Return whether what a layer hands to its attention is for one of the two calls of `TextFunction`."""
    return bool(kwargs.get(STOP)) or ENDS in kwargs


def lead_attention(template: nn.Module) -> None:
    """Let the attention of a layer's copy be `text_attention` where it is scaled dot-product attention."""
    copies: dict[int, PretrainedConfig] = {}
    for module in template.modules():
        for name, value in list(vars(module).items()):
            known = isinstance(value, PretrainedConfig) and value._attn_implementation in ("sdpa", PACKED)
            # A config of several parts would hand the choice down to those that others share.
            if known and not value.sub_configs:
                if id(value) not in copies:
                    copies[id(value)] = copy.copy(value)
                    copies[id(value)]._attn_implementation = NAME
                setattr(module, name, copies[id(value)])


AttentionInterface.register(NAME, text_attention)

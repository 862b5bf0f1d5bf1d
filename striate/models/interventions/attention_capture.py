"""Captures the attention calls (query, key, value, mask, output) of decoder layers, whatever attention they use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

_LOCK = threading.RLock()
# What attention functions take by position, after the module.
_TENSORS = ("query", "key", "value", "attention_mask")


@dataclass(frozen=True)
class AttentionCall:
    """What one attention function was given, and what it returned.

    Attributes:
        query: (B, H, T, E).
        key: (B, G, S, E); G divides H.
        value: (B, G, S, V).
        mask: what the function takes as its mask: (B, 1 or H, T, S) of booleans or of terms to add, None, or other.
        scaling: what inner products are multiplied by.
        causal: whether a query sees no later key, where there is no mask that says so.
        window: how many keys back a query sees at most, where there is no mask that says so.
        softcap: the limit of logits, or None.
        bias: what is added to the scaled logits besides the mask, or None.
        sinks: one logit a head that takes mass from all keys, or None.
        output: (B, T, H, V).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    scaling: float
    causal: bool
    window: int | None
    softcap: float | None
    bias: Tensor | None
    sinks: Tensor | None
    output: Tensor


@contextmanager
def watched_attention(layers: nn.ModuleList, on_call: Callable[[int, AttentionCall], None]) -> Iterator[None]:
    """Call `on_call(layer, call)` after every attention call inside `layers`, in the block.

    Each modeling file asks `AttentionInterface` for its attention function in every forward pass; inside this context
    the answer is wrapped. The model, its config and its attention function stay what they are, so masks are made
    as usual. Other models that run meanwhile are passed through.
    """
    owners = {id(module): index for index, layer in enumerate(layers) for module in layer.modules()}
    original = AttentionInterface.get_interface

    def get_interface(self: Any, attn_implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
        function = original(self, attn_implementation, default)

        def attend(module: nn.Module, *tensors: Any, **options: Any) -> Any:
            result = function(module, *tensors, **options)
            if id(module) in owners:
                arguments = dict(zip(_TENSORS, tensors, strict=False)) | options
                on_call(owners[id(module)], _call(module, arguments, result[0]))
            return result

        return attend

    with _LOCK:
        AttentionInterface.get_interface = get_interface
        try:
            yield
        finally:
            AttentionInterface.get_interface = original


def _call(module: nn.Module, arguments: dict[str, Any], output: Tensor) -> AttentionCall:
    causal, scaling, sinks = arguments.get("is_causal"), arguments.get("scaling"), arguments.get("s_aux")
    return AttentionCall(
        query=arguments["query"],
        key=arguments["key"],
        value=arguments["value"],
        mask=arguments.get("attention_mask"),
        scaling=arguments["query"].shape[-1] ** -0.5 if scaling is None else float(scaling),
        causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
        window=arguments.get("sliding_window"),
        softcap=arguments.get("softcap"),
        bias=arguments.get("position_bias"),
        sinks=sinks if sinks is not None else getattr(module, "sinks", None),
        output=output,
    )

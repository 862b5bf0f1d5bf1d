"""A layer that image tokens pass, as a pure function of its tensors: of image tokens, keys and values alone.

x_text' = layer(x_text | k, v);   x_image' = x_image;   k, v of all tokens that some text token sees

The layer is called twice, and no family's code is repeated. The first call is for its keys and values: what it computes
after them is used by nothing, so that a compiler leaves it out, forward and backward. The second is for its text tokens
with these keys and values; those that it computes itself are left out likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from striate.models.interventions.kv_cache_names import cache_name
from striate.training.compile.last_layer_answers import OUTPUT, put_off
from striate.training.compile.layer_function import LayerFunction
from striate.training.visual_token_skipping.kv_then_text import (
    KeptKeys,
    for_keys,
    for_text,
    in_two_calls,
    key_rows,
    text_rows,
)
from striate.training.visual_token_skipping.text_attention import lead_attention


class TextFunction(LayerFunction):
    """A layer outside the region: called with what `ImageRows.arguments` makes of a layer's arguments."""

    def __init__(
        self,
        layer: nn.Module,
        backend: str = "inductor",
        options: Mapping[str, Any] | None = None,
        lean: bool = False,
    ) -> None:
        """Take the form of `layer`; nothing is compiled before the first call."""
        super().__init__(layer, backend, options, lean)
        lead_attention(self.template)
        if self.adapters:
            self.refused = "it has adapters, and image tokens pass it"

    def inputs(self, kwargs: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call: `more` has all that there are."""
        return dict(more)

    def _bare(self) -> Callable[..., Any]:
        """Return the function to compile; it refers to the template and to nothing else."""
        both = self._both()

        def run(tensors: dict[str, Tensor], args: Any, kwargs: Mapping[str, Any]) -> Any:
            renamed = {f"layer.{name}": tensor for name, tensor in tensors.items()}
            return functional_call(both, renamed, args, dict(kwargs), strict=True)

        return run

    def _both(self) -> _TwoCalls:
        """Return the two calls as one module."""
        return _TwoCalls(self.template)


class TextAnswerFunction(TextFunction):
    """The last layer, where image tokens pass it: what follows attention at answer positions only. Output (1, N, D)."""

    def __init__(self, layer: nn.Module, backend: str = "inductor", options: Mapping[str, Any] | None = None) -> None:
        """Take the form of `layer`, which must have the known one (`answer_rows.has_known_form`)."""
        super().__init__(layer, backend, options)
        put_off(self.template.get_submodule(f"self_attn.{OUTPUT}"))

    def select(self, output: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Return the places of a whole layer's output that the function gives."""
        return output.flatten(0, 1)[kwargs["places"]].unsqueeze(0)

    def _both(self) -> _TwoCalls:
        """Return the two calls as one module."""
        return _TwoCallsAtPlaces(self.template)


class _TwoCalls(nn.Module):
    """A layer's two calls, and its output put together."""

    def __init__(self, layer: nn.Module) -> None:
        """Take the layer."""
        super().__init__()
        self.layer: Any = layer
        self.cache_name = self._name()

    def forward(self, hidden_states: Tensor, **given: Any) -> Any:
        """Return the layer's output in its own form, for hidden states (B, T, D)."""
        return in_two_calls(self.layer, hidden_states, given, self.cache_name)

    def _name(self) -> str:
        """Return what the module that is called twice calls its cache; compiled code can't look it up."""
        return cache_name(self.layer.forward)


class _TwoCallsAtPlaces(_TwoCalls):
    """The same of a layer's attention, and what follows it at chosen places; its output projection is put off."""

    def forward(self, hidden_states: Tensor, **given: Any) -> Tensor:
        """Return (1, N, D) for hidden states (B, T, D)."""
        layer, text_BXD = self.layer, text_rows(hidden_states, given)
        cache, attention, norm = KeptKeys(), layer.self_attn, layer.input_layernorm
        attention(hidden_states=norm(key_rows(hidden_states, given)), **{self.cache_name: cache}, **for_keys(given))
        attended = attention(hidden_states=norm(text_BXD), **{self.cache_name: cache}, **for_text(given))[0]
        chosen_N = given["text_back"][0][given["places"]]
        rows_N = chosen_N.clamp_min(0)
        attended, residual = (tensor.flatten(0, 1)[rows_N].unsqueeze(0) for tensor in (attended, text_BXD))
        residual = residual + getattr(attention, OUTPUT).now(attended)
        out = residual + layer.mlp(layer.post_attention_layernorm(residual))
        # An image token among the places, though it predicts nothing, leaves as it came.
        return torch.where((chosen_N >= 0)[:, None], out, hidden_states.flatten(0, 1)[given["places"]])

    def _name(self) -> str:
        """Return what the layer's attention calls its cache."""
        return cache_name(self.layer.self_attn.forward)

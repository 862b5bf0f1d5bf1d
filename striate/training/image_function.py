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

from striate.training import image_attention
from striate.training.answer_rows import OUTPUT, put_off
from striate.training.image_rows import AT_KEYS, AT_TEXT
from striate.training.layer_function import LayerFunction
from striate.training.moved_rows import moved, put


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
        image_attention.lead_attention(self.template)
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


class _Kept:
    """Stands in for a layer's cache: keeps the first call's keys and values, and gives them to the second."""

    def __init__(self) -> None:
        """Begin empty."""
        self.kept: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values that attention shall see."""
        if self.kept is None:
            self.kept = (keys, values)
        return self.kept


class _TwoCalls(nn.Module):
    """A layer's two calls, and its output put together."""

    def __init__(self, layer: nn.Module) -> None:
        """Take the layer."""
        super().__init__()
        self.layer: Any = layer

    def forward(self, hidden_states: Tensor, **given: Any) -> Any:
        """Return the layer's output in its own form, for hidden states (B, T, D)."""
        flat_MD, text_BXD = hidden_states.flatten(0, 1), _text(hidden_states, given)
        cache = _Kept()
        self.layer(_seen(hidden_states, given), past_key_values=cache, **_at(AT_KEYS, given), **_stopping(given))
        output = self.layer(text_BXD, past_key_values=cache, **_at(AT_TEXT, given), **_going_on(given))
        new_BXD = output[0] if isinstance(output, tuple) else output
        found = put(flat_MD, new_BXD.flatten(0, 1), given["text"].flatten(), given["text_back"][0])
        found = found.view_as(hidden_states)
        return (found, *output[1:]) if isinstance(output, tuple) else found


class _TwoCallsAtPlaces(_TwoCalls):
    """The same of a layer's attention, and what follows it at chosen places; its output projection is put off."""

    def forward(self, hidden_states: Tensor, **given: Any) -> Tensor:
        """Return (1, N, D) for hidden states (B, T, D)."""
        layer, text_BXD = self.layer, _text(hidden_states, given)
        cache, attention, norm = _Kept(), layer.self_attn, layer.input_layernorm
        seen_BKD = norm(_seen(hidden_states, given))
        attention(hidden_states=seen_BKD, past_key_values=cache, **_at(AT_KEYS, given), **_stopping(given))
        given_text = {**_at(AT_TEXT, given), **_going_on(given)}
        attended = attention(hidden_states=norm(text_BXD), past_key_values=cache, **given_text)[0]
        chosen_N = given["text_back"][0][given["places"]]
        rows_N = chosen_N.clamp_min(0)
        attended, residual = (tensor.flatten(0, 1)[rows_N].unsqueeze(0) for tensor in (attended, text_BXD))
        residual = residual + getattr(attention, OUTPUT).now(attended)
        out = residual + layer.mlp(layer.post_attention_layernorm(residual))
        # An image token among the places, though it predicts nothing, leaves as it came.
        return torch.where((chosen_N >= 0)[:, None], out, hidden_states.flatten(0, 1)[given["places"]])


def _text(hidden_BTD: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Return the hidden states of text tokens, (B, X, D)."""
    text_BX = given["text"]
    return moved(hidden_BTD.flatten(0, 1), text_BX.flatten(), given["text_back"]).view(*text_BX.shape, -1)


def _seen(hidden_BTD: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Return the hidden states of which keys and values are made, (B, K, D)."""
    if given["keys"] is None:
        return hidden_BTD.reshape(given["text"].shape[0], -1, hidden_BTD.shape[-1])
    return moved(hidden_BTD.flatten(0, 1), given["keys"], given["keys_back"])[None]


def _at(which: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layer's own arguments of one call."""
    return {name.removeprefix(which): value for name, value in given.items() if name.startswith(which)}


def _stopping(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells the layer's attention that only keys and values are wanted."""
    return {"attention_mask": None, image_attention.STOP: True}


def _going_on(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the layer's attention needs for runs of text; nothing where there is a mask."""
    if "ends" not in given:
        return {}
    return {
        "attention_mask": None,
        image_attention.ENDS: given["ends"],
        image_attention.KEY_ENDS: given["key_ends"],
        image_attention.LONGEST: given["longest"],
        image_attention.KEY_LONGEST: given["key_longest"],
    }

"""A layer that image tokens pass, called twice: for keys and values, then for its text tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from striate.training.visual_token_skipping import text_attention as image_attention
from striate.training.visual_token_skipping.row_gather import moved, put

# Beginnings of the names under which a layer's own arguments go to either call.
AT_TEXT, AT_KEYS = "at_text_", "at_keys_"


class KeptKeys:
    """Stands in for a layer's cache: keeps the first call's keys and values, and gives them to the second."""

    def __init__(self) -> None:
        """Begin empty."""
        self.kept: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values that attention shall see."""
        if self.kept is None:
            self.kept = (keys, values)
        return self.kept


def in_two_calls(layer: Callable[..., Any], hidden_BTD: Tensor, given: Mapping[str, Any], name: str) -> Any:
    """Return a layer's output in its own form, image tokens as they came.

    Args:
        layer: its forward method.
        hidden_BTD: the hidden states.
        given: what `ImageRows.arguments` makes of the layer's other arguments.
        name: what the layer calls its cache.
    """
    cache = KeptKeys()
    layer(key_rows(hidden_BTD, given), **{name: cache}, **for_keys(given))
    output = layer(text_rows(hidden_BTD, given), **{name: cache}, **for_text(given))
    new_BXD = output[0] if isinstance(output, tuple) else output
    flat_MD, text_N = hidden_BTD.flatten(0, 1), given["text"].flatten()
    found = put(flat_MD, new_BXD.flatten(0, 1), text_N, given["text_back"][0]).view_as(hidden_BTD)
    return (found, *output[1:]) if isinstance(output, tuple) else found


def text_rows(hidden_BTD: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Return the hidden states of text tokens, (B, X, D)."""
    text_BX = given["text"]
    return moved(hidden_BTD.flatten(0, 1), text_BX.flatten(), given["text_back"]).view(*text_BX.shape, -1)


def key_rows(hidden_BTD: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Return the hidden states of which keys and values are made, (B, K, D)."""
    if given["keys"] is None:
        return hidden_BTD
    return moved(hidden_BTD.flatten(0, 1), given["keys"], given["keys_back"])[None]


def for_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the first call, which ends with attention as far as results go."""
    return {**_at(AT_KEYS, given), "attention_mask": None, image_attention.STOP: True}


def for_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the second call: with a mask, or with the ends of the runs of text."""
    found = _at(AT_TEXT, given)
    if "ends" not in given:
        return found
    return found | {
        "attention_mask": None,
        image_attention.ENDS: given["ends"],
        image_attention.KEY_ENDS: given["key_ends"],
        image_attention.LONGEST: given["longest"],
        image_attention.KEY_LONGEST: given["key_longest"],
    }


def _at(which: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layer's own arguments of one call."""
    return {name.removeprefix(which): value for name, value in given.items() if name.startswith(which)}

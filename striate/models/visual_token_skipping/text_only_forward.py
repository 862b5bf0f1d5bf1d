"""A decoder layer that image tokens pass: run on its text tokens, with the image tokens' keys and values.

No family's code is repeated here. A layer runs twice: once on its image tokens, only until its attention has handed
keys and values to the cache, and once on its text tokens, with a cache that puts those among its own.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from striate.errors import ModelError
from striate.models.interventions.kv_cache_names import cache_name, given_cache, without_cache
from striate.models.visual_token_skipping.token_indices import (
    Places,
    arguments_at,
    hidden_of,
    rows_of_mask,
    take,
    with_hidden,
)


def without_checkpointing(layer: nn.Module) -> Callable[..., Any]:
    """Return the layer's forward method without the checkpointing that newer transformers wrap around it.

    That one drops the cache; what stands in for a cache here is made anew whenever the layer runs again.
    """
    inner = getattr(type(layer).forward, "__wrapped__", None)
    wrapped = isinstance(layer, GradientCheckpointingLayer) and "__call__" not in vars(GradientCheckpointingLayer)
    if inner is None or not wrapped:
        return layer.forward
    return MethodType(inner, layer)


def run_text_only(
    whole: Callable[..., Any], index: int, places: Places, others: dict[str, Any], hidden_BTD: Tensor
) -> Any:
    """Return the output of layer `index` with the image tokens' hidden states as they were."""
    if hidden_BTD.shape[1] != places.length:
        raise ModelError(
            f"the decoder sees {hidden_BTD.shape[1]} positions where the prompt has {places.length}",
            "a model with one position a token",
            "use train.image_tokens=all",
        )
    name, cache, given = cache_name(whole), given_cache(others), without_cache(others)
    mask = rows_of_mask(given.pop("attention_mask", None), hidden_BTD, places, _past(cache, index))
    recorder = _Recorder()
    try:
        whole(take(hidden_BTD, places.image, 1), **{name: recorder}, **arguments_at(given, places.image))
    except _Captured:
        pass
    else:
        raise ModelError(
            "a decoder layer handed no keys and values to its cache",
            "layers with an attention of their own",
            "use train.image_tokens=all",
        )
    text_BXD = take(hidden_BTD, places.text, 1)
    joiner = _Joiner(recorder, places, cache)
    output = whole(text_BXD, attention_mask=mask, **{name: joiner}, **arguments_at(given, places.text))
    new_BXD = hidden_of(output)
    wide_BTD = nn.functional.pad(hidden_BTD, (0, 0, 0, 1))
    return with_hidden(output, wide_BTD.scatter(1, places.text[:, :, None].expand_as(new_BXD), new_BXD)[:, :-1])


class _Captured(Exception):  # noqa: N818
    """Ends a layer's forward pass once its keys and values are known; never an error."""


class _StandIn:
    """Stands in for a cache that only attention uses; layers that ask more of it are refused."""

    def __getattr__(self, name: str) -> Any:
        raise ModelError(
            f"a decoder layer asks its cache for {name!r}: it is more than attention over all positions",
            "decoder layers of plain attention",
            "use train.image_tokens=all",
        )


class _Recorder(_StandIn):
    """Keeps what attention gives to the cache, and ends the forward pass there."""

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep keys and values, (B, heads, I, d) each."""
        self.keys, self.values = keys, values
        raise _Captured


class _Joiner(_StandIn):
    """Puts the image tokens' keys and values among those of the text tokens."""

    def __init__(self, recorder: _Recorder, places: Places, cache: Any) -> None:
        """Keep the image tokens' part, and the cache to hand all to, if there is one."""
        self._recorder = recorder
        self._places = places
        self._cache = cache

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all positions, (B, heads, T, d) each, those of earlier calls before them."""
        keys = self._join(self._recorder.keys, keys)
        values = self._join(self._recorder.values, values)
        if self._cache is None:
            return keys, values
        joined: tuple[Tensor, Tensor] = self._cache.update(keys, values, *args, **kwargs)
        return joined

    def _join(self, image: Tensor, text: Tensor) -> Tensor:
        """Return (B, heads, T, d) from the two kinds' parts."""
        batch, heads, _, width = text.shape
        whole = text.new_zeros(batch, heads, self._places.length + 1, width)
        for part, places in ((image, self._places.image), (text, self._places.text)):
            whole = whole.scatter(2, places[:, None, :, None].expand(-1, heads, -1, width), part)
        return whole[:, :, :-1]


def _past(cache: Any, index: int) -> int:
    """Return how many positions layer `index` has seen before this call."""
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length(index))
    except ValueError as error:
        raise ModelError(
            f"decoder layer {index} keeps no keys and values: {error}",
            "decoder layers of plain attention",
            "use train.image_tokens=all",
        ) from error

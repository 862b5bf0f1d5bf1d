"""The forward method of a decoder layer that image tokens skip: of image tokens, keys and values alone.

    x_text' = layer(x_text | k, v);   x_image' = x_image + step;   k, v of all tokens that some text token sees

No family's code is repeated. The layer runs twice: on the tokens whose keys are needed, only until its attention hands
keys and values to the cache, and on its text tokens, with a cache that gives these back. A compiler leaves out what
nothing reads: queries of the first run, keys and values of the second.

`torch.compile` traces it with fullgraph=True, and layers of one kind share a graph: all that differs between batches or
layers are tensors, found at attributes of the layer and of the batch's layout.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from striate.models.interventions.kv_cache_names import cache_name, given_cache, without_cache
from striate.models.interventions.patched_forward import without_checkpointing
from striate.models.interventions.varlen_attention import kernel_runs
from striate.models.visual_token_skipping.layer_arguments import VARLEN, arguments_at, cannot_skip, mask_rows
from striate.models.visual_token_skipping.row_gather import gather_rows, put_rows
from striate.models.visual_token_skipping.token_layout import TokenLayout, TokenRows

_ATTRIBUTE = "visual_skip"


@dataclass
class CurrentBatch:
    """The layout of the batch in work, for all layers of a model; None where it has no image tokens.

    Where all layers compute image tokens for a while (`whole`) there is none either.
    """

    layout: TokenLayout | None = None
    whole: bool = False


@dataclass
class LayerSkip:
    """What a layer's forward method reads, at the layer's attribute `visual_skip`.

    Attributes:
        batch: the layout of the batch in work.
        skipped: whether image tokens skip the layer; else they only take the step.
        step: what is added to image tokens after the layer, (D,), or None.
        varlen: whether the layer's attention takes runs of text.
        plain: the layer's own forward method.
        whole: the same without the checkpointing that newer transformers wrap around it: that one drops the cache.
        names: of the method's arguments by position.
        cache_name: what it calls its cache.
    """

    batch: CurrentBatch
    skipped: bool
    step: Tensor | None
    varlen: bool
    plain: Callable[..., Any]
    whole: Callable[..., Any]
    names: tuple[str, ...]
    cache_name: str


def install(layer: nn.Module, batch: CurrentBatch, *, skipped: bool, step: Tensor | None, varlen: bool) -> None:
    """Put the forward method of this module in the place of the layer's own, until `uninstall`."""
    plain: Callable[..., Any] = layer.forward
    whole = without_checkpointing(layer)
    names = tuple(inspect.signature(whole).parameters)
    setattr(layer, _ATTRIBUTE, LayerSkip(batch, skipped, step, varlen, plain, whole, names, cache_name(whole)))
    layer.forward = MethodType(_forward, layer)


def skipping_form(layer: nn.Module) -> tuple[bool, bool, bool] | None:
    """Return what sets a layer's skipping apart: skipped, with a step, over runs of text; None for a layer of its own.

    Layers of different forms run different code, whatever their modules are; so does one that is whole for a while.
    """
    skip: LayerSkip | None = getattr(layer, _ATTRIBUTE, None)
    if skip is not None and skip.batch.whole:
        return False, False, skip.varlen
    return (skip.skipped, skip.step is not None, skip.varlen) if skip else None


def uninstall(layer: nn.Module) -> None:
    """Give the layer its own forward method back."""
    vars(layer).pop("forward", None)
    vars(layer).pop(_ATTRIBUTE, None)


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states in a decoder layer's output, which some families wrap in a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def with_hidden(output: Any, hidden_BTD: Tensor) -> Any:
    """Return a decoder layer's output with other hidden states."""
    return (hidden_BTD, *output[1:]) if isinstance(output, tuple) else hidden_BTD


def _forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the layer's output, (B, T, D) or that in its own form."""
    skip: LayerSkip = getattr(layer, _ATTRIBUTE)
    layout = skip.batch.layout
    if layout is None:
        return skip.plain(*args, **kwargs)
    if skip.skipped:
        given = {**dict(zip(skip.names, args, strict=False)), **kwargs}
        hidden_BTD, run = given.pop("hidden_states"), partial(_text_only, skip, layout, given)
        if skip.whole is not skip.plain and layer.gradient_checkpointing and layer.training:
            output = layer._gradient_checkpointing_func(run, hidden_BTD)
        else:
            output = run(hidden_BTD)
    else:
        output = skip.plain(*args, **kwargs)
    if skip.step is None:
        return output
    hidden_BTD = hidden_of(output)
    return with_hidden(output, torch.where(layout.image, hidden_BTD + skip.step.to(hidden_BTD), hidden_BTD))


def _text_only(skip: LayerSkip, layout: TokenLayout, given: Mapping[str, Any], hidden_BTD: Tensor) -> Any:
    """Return the layer's output with image tokens as they came."""
    length = hidden_BTD.shape[1]
    if length != layout.image.shape[1]:
        raise cannot_skip(
            f"the decoder sees {length} positions where the prompt has {layout.image.shape[1]}",
            "a model with one position a token",
        )
    others = {name: value for name, value in without_cache(given).items() if name not in VARLEN}
    mask, cache = others.pop("attention_mask", None), given_cache(given)
    rows = _rows(skip, layout, mask, cache, hidden_BTD)
    flat_MD, text_N = hidden_BTD.flatten(0, 1), rows.text.flatten()
    store = _KeyValueStore(cache)
    try:
        if rows.keys is None:
            skip.whole(hidden_BTD, attention_mask=None, **{skip.cache_name: store}, **others)
        else:
            keys_1KD = gather_rows(flat_MD, rows.keys[0], rows.keys_back)[None]
            at_keys = arguments_at(others, rows.keys, length)
            skip.whole(keys_1KD, attention_mask=None, **{skip.cache_name: store}, **at_keys)
    except _Stored:
        pass
    else:
        raise cannot_skip(
            "a decoder layer handed no keys and values to its cache", "layers with attention of their own"
        )
    at_text = arguments_at(others, rows.text, length)
    if rows.varlen is None:
        at_text["attention_mask"] = mask_rows(mask, rows.text, length, store.keys.shape[-2])
    else:
        at_text.update(rows.varlen, attention_mask=None)
    text_RXD = gather_rows(flat_MD, text_N, rows.text_back).view(*rows.text.shape, -1)
    output = skip.whole(text_RXD, **{skip.cache_name: store}, **at_text)
    put_MD = put_rows(flat_MD, hidden_of(output).flatten(0, 1), text_N, rows.text_back[0])
    return with_hidden(output, put_MD.view_as(hidden_BTD))


def _rows(skip: LayerSkip, layout: TokenLayout, mask: Any, cache: Any, hidden: Tensor) -> TokenRows:
    """Return the form of the batch's rows that fits a call: runs of text where there is a kernel for them."""
    if layout.runs is None or not skip.varlen or mask is not None or cache is not None:
        return layout.grid
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return layout.runs if layout.packed or kernel_runs(hidden.device, dtype) else layout.grid


class _Stored(Exception):  # noqa: N818
    """Ends a layer's forward pass once its keys and values are known; never an error."""


class _KeyValueStore:
    """Stands in for a layer's cache: takes keys and values of the first run, and gives them to the second."""

    def __init__(self, cache: Any) -> None:
        """Keep the cache to hand keys and values on to, if there is one."""
        self._cache = cache
        self._values: tuple[Tensor, Tensor] | None = None

    @property
    def keys(self) -> Tensor:
        """The keys that text tokens see, (B, heads, K, head size)."""
        assert self._values is not None
        return self._values[0]

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values of all positions, those of earlier calls before them."""
        if self._values is None:
            self._values = (keys, values) if self._cache is None else self._cache.update(keys, values, *args, **kwargs)
            raise _Stored
        return self._values

    def __getattr__(self, name: str) -> Any:
        raise cannot_skip(
            f"a decoder layer asks its cache for {name!r}: it is more than attention over all positions",
            "decoder layers of plain attention",
        )

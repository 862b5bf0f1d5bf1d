"""Forecast of a vision encoder whose layers train: its share of a step's memory and work, counted as a decoder's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from striate.models.forecast.adapter_sizes import adapters_of
from striate.models.forecast.layer_shapes import LayerShape, ModelShape
from striate.models.forecast.settings import Settings


def encoder_settings(settings: Settings) -> Settings:
    """Return the settings by which layers of the encoder count: adapters on all linear layers, or full weights."""
    plain = replace(settings, modules="all", frozen="exact", skipped=frozenset(), recomputed=frozenset())
    return replace(plain, method="full") if settings.vision == "full" else replace(plain, method="lora")


def crossed(shape: ModelShape, settings: Settings) -> Iterator[tuple[LayerShape, bool]]:
    """Yield the layers that gradients cross, from the first that trains on, each with whether it trains."""
    if settings.vision == "frozen":
        return
    chosen = range(len(shape.encoder)) if settings.vision_chosen is None else settings.vision_chosen
    first = min(chosen, default=len(shape.encoder))
    yield from ((layer, index in chosen) for index, layer in enumerate(shape.encoder) if index >= first)


def encoder_trained(shape: ModelShape, settings: Settings) -> int:
    """Return how many parameters of the encoder train."""
    chosen = [layer for layer, trains in crossed(shape, settings) if trains]
    if settings.vision == "full":
        return sum(layer.parameters for layer in chosen)
    return sum(adapters_of(layer, encoder_settings(settings)).parameters for layer in chosen)

"""Forecast of decoder layers that image tokens skip: of these tokens, keys and values alone are computed."""

from __future__ import annotations

from striate.models.forecast.layer_shapes import LayerShape, ModelShape
from striate.models.forecast.settings import Settings


def kept_by_image_tokens(layer: LayerShape, settings: Settings) -> float:
    """Return the bytes an image token that a layer keeps which image tokens skip, and which is not run again.

    Its hidden state for the norm (2 x hidden; uncompiled in float32, and the layer's own copy), key and value
    (4 x keys; uncompiled once more, put among those of the text).
    """
    return 2.0 * layer.hidden + 4.0 * layer.keys if settings.fused else 6.0 * layer.hidden + 8.0 * layer.keys


def kept_by_text_tokens(layer: LayerShape, settings: Settings) -> float:
    """Return the bytes that a text token keeps more in such a layer: its hidden state, taken from among the others."""
    return 2.0 * layer.hidden if settings.fused else 0.0


def tokens_of(shape: ModelShape, settings: Settings) -> tuple[int, int]:
    """Return the text tokens and the image tokens of a batch."""
    return settings.batch * settings.text_tokens, settings.batch * shape.image_tokens


def attention_work(shape: ModelShape, layer: LayerShape, settings: Settings) -> float:
    """Return the operations of the text tokens' attention forward, with the text behind its picture."""
    text, _ = tokens_of(shape, settings)
    return 4.0 * layer.queries * (shape.image_tokens + settings.text_tokens / 2) * text


def image_traffic(layer: LayerShape, backward: bool) -> float:
    """Return the bytes an image token between a layer's products: one norm, rotary positions, and its way past it."""
    if backward:
        return 64.0 * layer.hidden + 22.0 * layer.keys + 12.0 * layer.hidden
    return 32.0 * layer.hidden + 20.0 * layer.keys + 4.0 * layer.hidden


def image_weights(layer: LayerShape) -> float:
    """Return the matrix weights that an image token is multiplied by: those of keys and values."""
    return 2.0 * layer.hidden * layer.keys

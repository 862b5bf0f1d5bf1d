"""Forecast of a training step's time: matrix products at one rate, everything between them at the memory's.

Widths are values a token (`LayerShape`), T = batch x (image tokens + text tokens).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from striate.artifacts import Region
from striate.models.forecast.adapter_sizes import Adapters, adapters_of, projector_trained
from striate.models.forecast.layer_shapes import LayerShape, ModelShape
from striate.models.forecast.memory import NF4_BYTES
from striate.models.forecast.settings import Accelerator, Settings
from striate.models.forecast.token_skipping import attention_work, image_traffic, image_weights, tokens_of
from striate.models.forecast.vision_training import crossed, encoder_settings, encoder_trained

# Shares of the accelerator's best that a step reaches, fitted to five steps timed on one H100 (docs/forecast.md).
PRODUCT_SHARE = 0.75
TRAFFIC_SHARE = 0.645
# The fused attention kernel, against the best matrix products.
ATTENTION_SHARE = 0.45
# Small models wait for their kernels to be launched: about so many of a layer's forward pass, at so many seconds.
LAUNCHES, LORA_LAUNCHES, LAUNCH_SECONDS = 45, 8, 7e-6
# DoRA makes every adapted matrix with its pair whole in each pass, for the norms of its rows: bytes a weight.
DORA_BYTES = 18.0


@dataclass(frozen=True)
class Work:
    """Matrix products (floating-point operations), attention (likewise), traffic between them (bytes), and launches."""

    products: float = 0.0
    attention: float = 0.0
    traffic: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.products + other.products,
            self.attention + other.attention,
            self.traffic + other.traffic,
            self.launches + other.launches,
        )

    def seconds(self, accelerator: Accelerator) -> float:
        """Return the time on `accelerator`; launches count where they take longer than the work."""
        products = self.products / (PRODUCT_SHARE * accelerator.flops)
        attention = self.attention / (ATTENTION_SHARE * accelerator.flops)
        traffic = self.traffic / (TRAFFIC_SHARE * accelerator.bytes_per_second)
        return max(products + attention + traffic, self.launches * LAUNCH_SECONDS)


def forecast_work(shape: ModelShape, region: Region, settings: Settings) -> Work:
    """Return the work of one step: forward, backward and update.

    A weight costs 2 operations a token forward, 2 for the gradient of its input, 2 for its own gradient where it
    trains, and 2 again where the layer is run twice for checkpointing. Causal attention costs 2 x queries operations a
    token and position forward, 2.5 times as much backward.
    """
    length = shape.image_tokens + settings.text_tokens
    text, image = tokens_of(shape, settings)
    first = 0 if settings.before_decoder else min(region.layers, default=len(shape.layers))
    total = Work()
    for index, layer in enumerate(shape.layers):
        chosen, passed = index in region.layers, index in settings.skipped
        tokens = text if passed else text + image
        forward = _forward(layer, chosen, settings, tokens, length)
        backward = _backward(layer, chosen, settings, tokens, length)
        if passed:
            attention = attention_work(shape, layer, settings)
            forward = _with_images(layer, replace(forward, attention=attention), image, False)
            backward = _with_images(layer, replace(backward, attention=2.5 * attention), image, True)
        total += forward
        if index >= first:
            total += backward
            if settings.checkpointing:
                total += forward
    return total + _vision(shape, settings) + _ends(shape, settings, text + image) + _update(shape, region, settings)


def _with_images(layer: LayerShape, work: Work, image: int, backward: bool) -> Work:
    """Return the work of a layer's text tokens with that of the image tokens that pass it."""
    return work + Work(products=2.0 * image_weights(layer) * image, traffic=image_traffic(layer, backward) * image)


def _forward(layer: LayerShape, chosen: bool, settings: Settings, tokens: int, length: int) -> Work:
    """Return one layer's forward pass.

    Bytes a token between the products: norms 32 a value (to float32, square, mean, scale, back, weight), rotary
    positions 20 a value of queries and keys, the gated MLP 10 a value (read gate, write; read both, write), residuals
    12. LoRA adds 17 a value in (to float32, dropout, back) and 12 a value out (B's result, scaled, added). DoRA runs
    the matrix again on the dropped input.
    """
    traffic = 32.0 * layer.norms + 20.0 * (layer.queries + layer.keys) + 12.0 * layer.hidden
    traffic += layer.inner * (10.0 if layer.gated else 4.0)
    weights, launches = layer.weights, LAUNCHES
    per_step = _unpacking(layer, chosen, settings)
    if chosen and settings.adapted:
        adapters = adapters_of(layer, settings)
        traffic += 17.0 * adapters.inputs + 12.0 * adapters.outputs
        weights += adapters.pairs + adapters.dora * adapters.weights
        launches += LORA_LAUNCHES * len(adapters.linears)
        per_step += adapters.dora * DORA_BYTES * adapters.weights
    elif chosen and settings.masters:
        # float32 to bfloat16, every pass.
        per_step += 6.0 * layer.parameters
    return Work(2.0 * weights * tokens, 2.0 * layer.queries * length * tokens, traffic * tokens + per_step, launches)


def _backward(layer: LayerShape, chosen: bool, settings: Settings, tokens: int, length: int) -> Work:
    """Return one layer's backward pass.

    Bytes a token: norms 64 a value, rotary positions 22, the gated MLP 18, sums of gradients at branches 30 x hidden.
    Gradients of the parts of one fused product are padded to its width and summed (20 a value, 4 for two halves). LoRA
    adds 29 a value in and 4 a value out.
    """
    traffic = 64.0 * layer.norms + 22.0 * (layer.queries + layer.keys) + 30.0 * layer.hidden
    traffic += layer.inner * (18.0 if layer.gated else 6.0)
    if layer.fused:
        traffic += 20.0 * (layer.queries + 2 * layer.keys) + 4.0 * 2 * layer.inner
    weights, own, launches = layer.weights, 0, LAUNCHES * 1.5
    per_step = _unpacking(layer, chosen, settings)
    if chosen and settings.adapted:
        adapters = adapters_of(layer, settings)
        traffic += 29.0 * adapters.inputs + 4.0 * adapters.outputs
        own = adapters.pairs
        weights += own + adapters.dora * adapters.weights
        launches += LORA_LAUNCHES * 1.5 * len(adapters.linears)
    elif chosen:
        traffic += 12.0 * layer.norms
        own = layer.weights
        per_step += 6.0 * layer.parameters if settings.masters else 0.0
    products = 2.0 * (weights + own) * tokens
    return Work(products, 5.0 * layer.queries * length * tokens, traffic * tokens + per_step, launches)


def _unpacking(layer: LayerShape, chosen: bool, settings: Settings) -> float:
    """Return the bytes of turning weights in 4 bits, or frozen ones in 8-bit integers, into bfloat16 once."""
    if settings.frozen == "int8" and not chosen:
        return 3.0 * layer.linear_weights
    return (NF4_BYTES + 4.0) * layer.linear_weights if settings.method == "qlora" else 0.0


def _vision(shape: ModelShape, settings: Settings) -> Work:
    """Return the vision encoder's forward pass, and what is crossed backward of it and of the projector."""
    positions = settings.batch * shape.vision_positions
    attention = 4.0 * shape.vision_width * shape.vision_positions * positions * shape.vision_layers
    projector = sum(inside * outside for inside, outside in shape.projector) * settings.batch * shape.image_tokens
    traffic = 80.0 * shape.vision_width * positions * shape.vision_layers
    # Forward, the gradient of its input, and that of its weights.
    passes = {"frozen": 1 + (settings.vision != "frozen"), "lora": 2, "full": 3}[settings.projector]
    products = 2.0 * shape.vision_weights * positions + 2.0 * passes * projector
    return Work(products, attention, traffic, 20 * shape.vision_layers) + _encoder_backward(shape, settings)


def _encoder_backward(shape: ModelShape, settings: Settings) -> Work:
    """Return the backward pass of the vision encoder's layers, from the first that trains on, and their adapters.

    Attention there sees the whole picture, twice the positions of causal attention on average.
    """
    own, tokens, total = encoder_settings(settings), settings.batch * shape.vision_positions, Work()
    for layer, trains in crossed(shape, settings):
        adapters = adapters_of(layer, own) if trains else Adapters((), (), False)
        traffic = 17.0 * adapters.inputs + 12.0 * adapters.outputs
        total += Work(products=2.0 * adapters.pairs * tokens, traffic=traffic * tokens)
        total += _backward(layer, trains, own, tokens, 2 * shape.vision_positions)
        if settings.checkpointing:
            total += _forward(layer, trains, own, tokens, 2 * shape.vision_positions)
    return total


def _ends(shape: ModelShape, settings: Settings, tokens: int) -> Work:
    """Return the LM head and the loss, both ways: 38 bytes a logit."""
    rows = settings.batch * settings.answer_tokens if settings.answers_only else tokens
    return Work(4.0 * rows * shape.vocabulary * shape.hidden, 0.0, 38.0 * rows * shape.vocabulary, 40)


def _update(shape: ModelShape, region: Region, settings: Settings) -> Work:
    """Return AdamW's update: reads weight, gradient, two moments, writes three of them; clipping reads and scales."""
    layers = [layer for index, layer in enumerate(shape.layers) if index in region.layers]
    width = 4 if settings.masters or settings.adapted else 2
    count = sum(adapters_of(layer, settings).parameters if settings.adapted else layer.parameters for layer in layers)
    count += projector_trained(shape, settings) + encoder_trained(shape, settings)
    return Work(traffic=(7.0 + (3.0 if settings.masters else 0.0)) * width * count)

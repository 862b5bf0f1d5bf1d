"""Forecast of a training step's peak memory, by counting what stays on the accelerator.

Widths are values a token (`LayerShape`), T = batch x (image tokens + text tokens); bfloat16 is 2 bytes, float32 is 4.
Attention runs through PyTorch's fused kernel without a mask, norms are Hugging Face's eager ones, under autocast.
"""

from __future__ import annotations

from dataclasses import dataclass

from striate.artifacts import Region
from striate.models.forecast.adapter_sizes import Adapters, adapters_of, projector_trained
from striate.models.forecast.layer_shapes import LayerShape, ModelShape
from striate.models.forecast.settings import GIB, Settings
from striate.models.forecast.token_skipping import kept_by_image_tokens, kept_by_text_tokens, tokens_of
from striate.models.forecast.vision_training import crossed, encoder_settings, encoder_trained

# NF4 with blocks of 64: 4 bits, one 8-bit scale a block, one float32 for every 256 scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# A moment in 8 bits, with one float32 for every 256.
SMALL_STATE_BYTES = 1 + 4 / 256
# At the loss: log-probabilities, their gradient and the logits' gradient, float32 each.
LOGIT_BYTES = 12


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of one step, by kind; `peak` is the largest of the moments, not their sum.

    Attributes:
        weights: the model, its adapters, and float32 masters.
        states: AdamW's two moments.
        gradients: of everything that trains.
        activations: what autograd keeps at the end of the forward pass.
        peak: the largest sum that is alive at one time.
    """

    weights: float
    states: float
    gradients: float
    activations: float
    peak: float

    @property
    def peak_gib(self) -> float:
        """The peak in GiB."""
        return self.peak / GIB


def forecast_memory(shape: ModelShape, region: Region, settings: Settings) -> Memory:
    """Return the memory of one step after the first (AdamW has its states by then).

    weights: 2 bytes a frozen parameter, 4 (float32 master) or 2 a trained one; with LoRA the frozen projector that PEFT
    keeps beside its trained copy; with QLoRA 0.52 bytes a weight of the decoder's linear layers.
    A frozen matrix outside the region in 8-bit integers takes 1 byte a weight and 4 an output; two of the largest are
    made whole at a time. In 8-bit floats a matrix is held twice, so as many bytes as in bfloat16.
    states: 2 x the trained parameters at their width, or at 1.02 bytes in 8 bits. gradients: 1 x. A float32 master runs
    as a bfloat16 copy, which lives from its forward to its backward pass.

    The peak is the largest of: the end of the forward pass (every activation, and the logits or the last layer's
    passing tensors), each layer's turn in the backward pass (activations of the layers below, gradients of the layers
    above, the layer's own passing tensors), and the update (all gradients). The accelerator's context and the
    allocator's gaps are not counted.
    """
    tokens = settings.batch * (shape.image_tokens + settings.text_tokens)
    trained = [_trained_bytes(layer, index in region.layers, settings) for index, layer in enumerate(shape.layers)]
    projector = projector_trained(shape, settings)
    encoder = encoder_trained(shape, settings)
    width = 4 if settings.masters else 2
    aside = projector * (width if settings.projector == "full" else 4)
    aside += encoder * (width if settings.vision == "full" else 4)
    weights = _weight_bytes(shape, region, settings) + sum(trained) + aside
    gradients = sum(trained) + aside
    states = 2 * gradients
    if settings.optimizer == "adamw-8bit":
        states = 2 * SMALL_STATE_BYTES * (sum(trained) / (4 if settings.adapted else width) + projector + encoder)
    copies = _half_copies(shape, region, settings) + _whole_bytes(shape, region, settings)
    persistent = weights + states + (gradients if settings.accumulated else 0)
    saved = [_saved_bytes(shape, index, region, settings) for index in range(len(shape.layers))]
    whole = [_own(shape, index, region, settings) if saved[index] else 0.0 for index in range(len(shape.layers))]
    outside = _outside_bytes(shape, region, settings, tokens) + _encoder_bytes(shape, settings)
    rows = settings.batch * settings.answer_tokens if settings.answers_only else tokens
    text, _ = tokens_of(shape, settings)
    computed = [text if index in settings.skipped else tokens for index in range(len(shape.layers))]
    turn = [count * _passing_bytes(layer, settings) for count, layer in zip(computed, shape.layers, strict=True)]
    activations = sum(saved) + outside
    ends = max(LOGIT_BYTES * rows * shape.vocabulary, turn[-1])
    moments = [persistent + copies + activations + ends]
    done = 0.0
    for index in reversed(range(len(shape.layers))):
        recomputed = whole[index] if settings.recomputes(index) else 0.0
        grown = 0.0 if settings.accumulated else done
        held = 0.0 if settings.checkpointing else copies
        moments.append(persistent + held + grown + sum(saved[: index + 1]) + outside + recomputed + turn[index])
        done += trained[index]
    moments.append(weights + states + gradients)
    return Memory(weights, states, gradients, activations, max(moments))


def _weight_bytes(shape: ModelShape, region: Region, settings: Settings) -> float:
    """Return the bytes of everything that does not train."""
    frozen = shape.other_parameters * 2.0
    if settings.vision == "full" and not settings.adapted:
        frozen -= encoder_trained(shape, settings) * 2.0
    if settings.adapted or settings.projector == "frozen":
        frozen += shape.projector_parameters * 2
    for index, layer in enumerate(shape.layers):
        if settings.method == "qlora":
            frozen += layer.linear_weights * NF4_BYTES + (layer.parameters - layer.linear_weights) * 2
        elif settings.adapted or index not in region.layers:
            frozen += layer.parameters * 2
            if settings.frozen == "int8" and index not in region.layers:
                frozen -= layer.linear_weights - 4 * sum(outside for _, outside in layer.linears)
    return frozen


def _whole_bytes(shape: ModelShape, region: Region, settings: Settings) -> float:
    """Return the bytes of matrices in 8-bit integers that are made whole at one time: two of the largest."""
    if settings.frozen != "int8":
        return 0.0
    sizes = [a * b for index, layer in enumerate(shape.layers) if index not in region.layers for a, b in layer.linears]
    return 2 * 2.0 * max(sizes, default=0)


def _trained_bytes(layer: LayerShape, chosen: bool, settings: Settings) -> float:
    """Return the bytes of one layer's trained parameters; adapters are float32 always."""
    if not chosen:
        return 0.0
    if settings.adapted:
        return 4.0 * adapters_of(layer, settings).parameters
    return layer.parameters * (4.0 if settings.masters else 2.0)


def _half_copies(shape: ModelShape, region: Region, settings: Settings) -> float:
    """Return the bytes of the bfloat16 copies that autocast makes of float32 weights."""
    chosen = [layer for index, layer in enumerate(shape.layers) if index in region.layers]
    if settings.adapted:
        return 2.0 * sum(adapters_of(layer, settings).pairs for layer in chosen)
    return 2.0 * sum(layer.linear_weights for layer in chosen) if settings.masters else 0.0


def _saved_bytes(shape: ModelShape, index: int, region: Region, settings: Settings) -> float:
    """Return the bytes that layer `index` keeps until the backward pass reaches it.

    Below the first trained part nothing needs a gradient. A checkpointed layer keeps its input only.
    """
    first = 0 if settings.before_decoder else min(region.layers, default=len(region))
    if index < first:
        return 0.0
    if settings.recomputes(index):
        return 2.0 * shape.layers[index].hidden * sum(tokens_of(shape, settings))
    return _own(shape, index, region, settings)


def _own(shape: ModelShape, index: int, region: Region, settings: Settings) -> float:
    """Return the bytes that autograd keeps inside layer `index`, by text and by image tokens."""
    layer, (text, image) = shape.layers[index], tokens_of(shape, settings)
    each = _own_bytes(layer, index in region.layers, settings)
    if index not in settings.skipped:
        return (text + image) * each
    return text * (each + kept_by_text_tokens(layer, settings)) + image * kept_by_image_tokens(layer, settings)


def _own_bytes(layer: LayerShape, chosen: bool, settings: Settings) -> float:
    """Return the bytes a token that autograd keeps inside one layer.

    A frozen layer, through which gradients pass, keeps: the float32 input of every norm (4 x norms); queries, keys,
    values and output of attention (2 x (2 queries + 2 keys)) and its float32 row sums (4 x heads); the MLP's gate
    before and after the activation, and what it multiplies (2 x 3 inner), or just the activation's input (2 x inner).
    A frozen matrix keeps no input. Values cut from one fused product keep all of it (2 x (queries + keys) more). In a
    mixture every route keeps its gathered input, its result and the weighted one (6 x hidden). A trained layer adds:

    - full: each norm's result for its weight (2 x norms), and the inputs of its matrices. With float32 masters a norm
      gives float32, so every matrix casts an input of its own (2 x inputs; the output projection shares attention's);
      without, matrices side by side share one (2 x (2 hidden + inner)).
    - LoRA, QLoRA: of every linear layer the dropped input in bfloat16 and the dropout's mask (2 + 1 a value), and the
      result of A (2 r).

    Compiled, see `_fused_bytes`.
    """
    if settings.fused:
        return _fused_bytes(layer, chosen, settings)
    saved = 4.0 * layer.norms + 4.0 * (layer.queries + layer.keys) + 4.0 * layer.heads
    saved += 2.0 * layer.inner * (3 if layer.gated else 1)
    saved += 2.0 * (layer.queries + layer.keys) * layer.fused + 6.0 * layer.hidden * layer.routes
    if not chosen:
        return saved
    if settings.adapted:
        adapters = adapters_of(layer, settings)
        return saved + 3.0 * adapters.inputs + 2.0 * sum(adapters.ranks) + _dora_bytes(adapters)
    inputs = sum(inside for inside, _ in layer.linears)
    if settings.masters:
        return saved + 2.0 * layer.norms + 2.0 * (inputs - layer.queries)
    return saved + 2.0 * layer.norms + 2.0 * (2 * layer.hidden + layer.inner)


def _fused_bytes(layer: LayerShape, chosen: bool, settings: Settings) -> float:
    """Return the bytes a token that a compiled layer keeps: what is cheap to make from something kept is made again.

    A frozen layer keeps every norm's input in bfloat16 (2 x norms), queries, keys, values and output of attention, its
    row sums, and the MLP's gate and what it multiplies. A trained layer adds: full, each norm's result and the last
    matrix's input (2 x (norms + inner)); LoRA, the result of A (2 r a matrix) and a row's random number (4 a matrix).
    """
    saved = 2.0 * layer.norms + 4.0 * (layer.queries + layer.keys) + 4.0 * layer.heads
    saved += 2.0 * layer.inner * (2 if layer.gated else 1)
    saved += 2.0 * (layer.queries + layer.keys) * layer.fused + 6.0 * layer.hidden * layer.routes
    if not chosen:
        return saved
    if settings.adapted:
        adapters = adapters_of(layer, settings)
        return saved + 2.0 * sum(adapters.ranks) + 4.0 * len(adapters.ranks) + _dora_bytes(adapters)
    return saved + 2.0 * (layer.norms + layer.inner)


def _dora_bytes(adapters: Adapters) -> float:
    """Return the bytes a token that DoRA keeps more: what the matrix and what the pair gave, for the outputs' norms."""
    return 4.0 * adapters.outputs * adapters.dora


def _passing_bytes(layer: LayerShape, settings: Settings) -> float:
    """Return the bytes a token of the tensors that come and go at a layer's widest place.

    Gradients of the MLP's branches and of the residual stream (2 x (2 inner + 3 hidden)); with LoRA the float32 copies
    around the dropout of the widest input (8 x inner), compiled just its dropped values (2 x inner).
    """
    passing = 2.0 * (2 * layer.inner + 3 * layer.hidden)
    if not settings.adapted:
        return passing
    return passing + (2.0 if settings.fused else 8.0) * layer.inner


def _encoder_bytes(shape: ModelShape, settings: Settings) -> float:
    """Return the bytes that the vision encoder's layers keep, from the first that trains on; they are freed last.

    A layer counts as a decoder's. Recomputed, it keeps its input. Trained in full it has a bfloat16 copy too.
    """
    own, tokens = encoder_settings(settings), settings.batch * shape.vision_positions
    kept = 0.0
    for layer, trains in crossed(shape, settings):
        kept += tokens * (2.0 * layer.hidden if settings.checkpointing else _own_bytes(layer, trains, own))
        if trains and settings.masters:
            kept += 2.0 * (adapters_of(layer, own).pairs if own.adapted else layer.linear_weights)
    return kept


def _outside_bytes(shape: ModelShape, region: Region, settings: Settings, tokens: int) -> float:
    """Return the bytes kept outside the layers.

    The projector's inputs and activations (2 a value of each linear layer's in and out, of image tokens), the mask that
    puts them in place (1 x hidden), and the final norm's float32 input (4 x hidden).
    """
    if not settings.before_decoder and not region.layers:
        return 0.0
    kept = tokens * 5.0 * shape.hidden
    if settings.before_decoder:
        kept += settings.batch * shape.image_tokens * 2.0 * sum(inside + outside for inside, outside in shape.projector)
    return kept

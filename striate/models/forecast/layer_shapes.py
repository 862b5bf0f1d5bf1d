"""The widths of an LVLM that memory and time depend on, read off its modules on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import nn

from striate.errors import ModelError
from striate.models.structure.anatomy import PROJECTOR, VISION, component_of, decoder_layers
from striate.models.structure.image_tokens import image_tokens
from striate.models.structure.meta_model import Blueprint
from striate.models.structure.vision_stack import find_vision_stack

_WIDTHS = ("hidden_size", "embed_dim", "width")
# Config fields that say how many experts a token goes through.
_ROUTES = ("num_experts_per_tok", "moe_topk", "moe_k")


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer; widths are in values a token.

    Attributes:
        hidden: the residual stream.
        queries: queries, which is also the width of what attention gives.
        keys: keys, which is also the width of values.
        heads: query heads.
        inner: the MLP's inner width, of the active experts in a mixture.
        gated: whether the MLP multiplies two inner projections.
        fused: whether one matrix gives queries, keys and values.
        routes: experts that a token goes through; 0 without a mixture.
        norms: the sum of what the layer's norms see.
        linears: (in, out) of each linear layer: what LoRA adapts.
        names: their names within the layer.
        place: the layer's name in the model.
        experts: matrix weights of a mixture's experts, which are no linear layers.
        active_experts: how many of those a token goes through.
        parameters: all parameters.
    """

    hidden: int
    queries: int
    keys: int
    heads: int
    inner: int
    gated: bool
    fused: bool
    routes: int
    norms: int
    linears: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    place: str
    experts: int
    active_experts: int
    parameters: int

    @property
    def linear_weights(self) -> int:
        """Weights of the linear layers."""
        return sum(inside * outside for inside, outside in self.linears)

    @property
    def weights(self) -> int:
        """Matrix weights that one token is multiplied by."""
        return self.linear_weights + self.active_experts


@dataclass(frozen=True)
class ModelShape:
    """A whole LVLM.

    Attributes:
        layers: the decoder layers, first to last.
        hidden: width of the residual stream.
        vocabulary: rows of the LM head.
        image_tokens: of one picture, as the decoder sees them.
        vision_positions: tokens of one picture inside the vision encoder.
        vision_weights: matrix weights of the vision encoder.
        vision_width: its width.
        vision_layers: its number of blocks.
        encoder: those of its layers that features pass, first to last; none where it has no list of layers.
        projector: (in, out) of the projector's linear layers.
        projector_names: their names in the model.
        projector_parameters: parameters of the projector.
        other_parameters: parameters outside decoder layers and projector.
    """

    layers: tuple[LayerShape, ...]
    hidden: int
    vocabulary: int
    image_tokens: int
    vision_positions: int
    vision_weights: int
    vision_width: int
    vision_layers: int
    encoder: tuple[LayerShape, ...]
    projector: tuple[tuple[int, int], ...]
    projector_names: tuple[str, ...]
    projector_parameters: int
    other_parameters: int


def model_shape(plan: Blueprint, tokens: int | None = None) -> ModelShape:
    """Return the shape of the LVLM in `plan`; `tokens` overrides its image tokens a picture."""
    text = plan.model.config.get_text_config(decoder=True)
    modules = dict(plan.model.named_modules())
    names = {id(module): name for name, module in modules.items()}
    layers = tuple(_layer_shape(layer, text, names[id(layer)]) for layer in decoder_layers(plan.model))
    projector = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and component_of(plan.anatomy, f"{name}.weight") == PROJECTOR
    }
    vision = [m for name, m in modules.items() if component_of(plan.anatomy, f"{name}.weight") == VISION]
    encoder = plan.model.config.vision_config
    count = tokens or image_tokens(plan.model).count
    projector_parameters = plan.count("projector")
    return ModelShape(
        layers=layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        image_tokens=count,
        vision_positions=_vision_positions(encoder, count),
        vision_weights=sum(module.weight.numel() for module in vision if isinstance(module, nn.Linear)),
        vision_width=_first(encoder, _WIDTHS, text.hidden_size),
        vision_layers=_first(encoder, ("num_hidden_layers", "depth"), 0),
        encoder=tuple(_encoder_shape(modules[name], encoder, name) for name in _encoder_names(plan)),
        projector=tuple((m.in_features, m.out_features) for m in projector.values()),
        projector_names=tuple(projector),
        projector_parameters=projector_parameters,
        other_parameters=plan.total - projector_parameters - sum(layer.parameters for layer in layers),
    )


def _encoder_names(plan: Blueprint) -> tuple[str, ...]:
    """Return the names of the vision encoder's layers that features pass; none where it is no stack."""
    try:
        return find_vision_stack(plan.model, plan.anatomy).names
    except ModelError:
        return ()


def _encoder_shape(layer: nn.Module, vision: Any, place: str) -> LayerShape:
    """Return the widths of one layer of the vision encoder, whose attention has as many keys as queries."""
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    hidden = linears[0].in_features if linears else _first(vision, _WIDTHS, 1)
    heads = _first(vision, ("num_attention_heads", "num_heads", "attention_heads"), 1)
    inner = max((module.in_features for module in linears if module.out_features == hidden), default=hidden)
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": inner}
    return _layer_shape(layer, SimpleNamespace(**sizes), place)


def _layer_shape(layer: nn.Module, text: Any, place: str = "") -> LayerShape:
    """Return the widths of one decoder layer, the module `place` of its model."""
    named = {name: m for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
    linears = tuple((m.in_features, m.out_features) for m in named.values())
    hidden = text.hidden_size
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or hidden // heads
    keys = (getattr(text, "num_key_value_heads", None) or heads) * size
    experts = sum(p.numel() for name, p in layer.named_parameters() if ".experts." in f".{name}" and p.dim() == 3)
    active = experts * _active_share(text)
    inner, gated = _mlp(layer, text)
    return LayerShape(
        hidden=hidden,
        queries=heads * size,
        keys=keys,
        heads=heads,
        inner=inner,
        gated=gated,
        fused=(hidden, heads * size + 2 * keys) in linears,
        routes=_first(text, _ROUTES, 1) if experts else 0,
        norms=sum(_norm_width(name, m, heads * size, keys) for name, m in layer.named_modules()),
        linears=linears,
        names=tuple(named),
        place=place,
        experts=experts,
        active_experts=int(active),
        parameters=sum(parameter.numel() for parameter in layer.parameters()),
    )


def _mlp(layer: nn.Module, text: Any) -> tuple[int, bool]:
    """Return the MLP's inner width and whether it is gated; the widest way back to the hidden size is its last step."""
    outside = [
        m
        for name, m in layer.named_modules()
        if isinstance(m, nn.Linear) and "attn" not in name and "router" not in name
    ]
    down = [m.in_features for m in outside if m.out_features == text.hidden_size]
    up = sum(
        m.out_features for m in outside if m.in_features == text.hidden_size and m.out_features >= max(down, default=1)
    )
    chosen = _first(text, _ROUTES, 1)
    if down:
        return max(down), up >= 2 * max(down)
    inner = _first(text, ("moe_intermediate_size", "intermediate_size"), 4 * text.hidden_size)
    return inner * chosen, True


def _active_share(text: Any) -> float:
    """Return the share of a mixture's experts that a token goes through."""
    total = _first(text, ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 0)
    chosen = _first(text, _ROUTES, 1)
    return chosen / total if total else 1.0


def _norm_width(name: str, module: nn.Module, queries: int, keys: int) -> int:
    """Return how many values a token the norm sees; norms of queries and keys run over every head."""
    if "norm" not in type(module).__name__.lower() or not hasattr(module, "weight"):
        return 0
    last = name.rpartition(".")[2]
    if last.startswith("q_"):
        return queries
    weight: Any = module.weight
    return keys if last.startswith("k_") else int(weight.numel())


def _vision_positions(vision: Any, tokens: int) -> int:
    """Return the encoder's tokens of one picture: a patch each, or what lies under the image tokens."""
    side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if isinstance(side, int) and isinstance(patch, int) and not getattr(vision, "spatial_merge_size", None):
        return max((side // patch) ** 2, tokens)
    return tokens * (getattr(vision, "spatial_merge_size", None) or 1) ** 2


def _first(config: Any, names: tuple[str, ...], default: int) -> int:
    """Return the first of the fields that the config has as a number."""
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), default)

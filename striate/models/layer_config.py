"""Which config fields speak of single decoder layers, and what they become when some layers go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from striate.errors import ModelError

DEPTH = "num_hidden_layers"

# One entry a layer, in layer order.
PER_LAYER = frozenset(
    {
        "layer_types",
        "mlp_layer_types",
        "layers_block_type",
        "indexer_types",
        "no_rope_layers",
        "layer_rope_theta",
        "moe_layer_freq",
        "num_attention_heads_per_layer",
        "num_key_value_heads_per_layer",
    }
)
# Layer numbers.
INDICES = frozenset({"cross_attention_layers", "mlp_only_layers", "moe_layers", "local_layer_ids", "full_attn_idxs"})
# How many of the first layers are special.
LEADING = frozenset(
    {"first_k_dense_replace", "max_window_layers", "num_dense_layers", "num_first_full_attention_layers"}
)
# How many of the last layers depend on earlier ones.
TRAILING = frozenset({"num_kv_shared_layers", "num_last_full_attention_layers"})
# Index lists without which the language model no longer sees the picture.
VITAL = frozenset({"cross_attention_layers"})

_ELSEWHERE = ("vision_", "mtp_", "audio_", "_")


def config_edits(config: Any, kept: Sequence[int], num_layers: int) -> dict[str, Any]:
    """Return new values for the fields of `config` that speak of decoder layers, once only `kept` of them stay.

    `config` is a text config, or the config around it. Fields that stay the same are left out.

    Raises:
        ModelError: a field speaks of layers in a way that no rule here covers, or can't follow.
    """
    if getattr(config, "is_heterogeneous", False):
        raise cannot_remove("its config overrides settings layer by layer (per_layer_config)")
    edits: dict[str, Any] = {}
    for name, value in vars(config).items():
        if name.startswith(_ELSEWHERE) or value is None:
            continue
        new = _edited(name, value, kept, num_layers)
        if new != value:
            edits[name] = new
    if getattr(config, DEPTH, None) == num_layers:
        edits[config.attribute_map.get(DEPTH, DEPTH)] = len(kept)
    return edits


def cannot_remove(reason: str) -> ModelError:
    """Return the error for layers that must stay, with the reason."""
    return ModelError(
        f"these layers can't be removed: {reason}",
        "decoder layers that nothing else depends on",
        "choose other layers, remove none, or use another model",
    )


def _edited(name: str, value: Any, kept: Sequence[int], num_layers: int) -> Any:
    """Return what the field `name` becomes."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _edited_count(name, value, kept, num_layers)
    if isinstance(value, list | tuple) and value:
        return _edited_list(name, value, kept, num_layers)
    if isinstance(value, dict) and "layer" in name and value and all(str(key).isdigit() for key in value):
        return {type(key)(new): value[key] for key, new in _renumbered(value, kept)}
    return value


def _edited_count(name: str, value: int, kept: Sequence[int], num_layers: int) -> int:
    """Return a count of special layers after the removal."""
    if name in TRAILING and value:
        raise cannot_remove(f"its last {value} layers depend on earlier ones ({name}={value})")
    # A count at or past the depth means "all layers", and goes on meaning it.
    return sum(layer < value for layer in kept) if name in LEADING and value < num_layers else value


def _edited_list(name: str, value: list[Any] | tuple[Any, ...], kept: Sequence[int], num_layers: int) -> Any:
    """Return a list of layer facts or layer numbers after the removal."""
    of_layers = name in PER_LAYER or ("layer" in name and all(isinstance(entry, str) for entry in value))
    if of_layers and len(value) >= num_layers:
        # Some configs list more entries than the model has layers: those are never read, and go.
        return type(value)(value[layer] for layer in kept)
    if name in INDICES and all(isinstance(entry, int) for entry in value):
        new_number = {old: new for new, old in enumerate(kept)}
        left = type(value)(new_number[entry] for entry in value if entry in new_number)
        if name in VITAL and not left:
            raise cannot_remove(f"they are the only ones that look at the picture ({name}={list(value)})")
        return left
    if "layer" in name or name in PER_LAYER | INDICES:
        raise cannot_remove(
            f"the config field {name}={list(value)} speaks of layers in a way that striate does not know"
        )
    return value


def _renumbered(value: dict[Any, Any], kept: Sequence[int]) -> list[tuple[Any, int]]:
    """Return the keys of a dict keyed by layer number that stay, each with its new number."""
    new_number = {old: new for new, old in enumerate(kept)}
    return [(key, new_number[int(key)]) for key in value if int(key) in new_number]

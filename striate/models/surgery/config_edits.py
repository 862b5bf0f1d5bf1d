"""Edits the config fields that speak of single decoder layers, for the layers that stay after pruning."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from striate.errors import ModelError
from striate.models.structure.decoder_stack import DEPTH, depth_field
from striate.models.surgery.renumber import kept_numbers, new_numbers

# Settings that single layers override, by layer number.
OVERRIDES = "per_layer_config"
# Which layers of sparse attention select tokens, and which read the selection of the layer before.
INDEXERS = "indexer_types"
# One entry a layer, in layer order, whatever the entries are.
PER_LAYER = frozenset(
    {
        "layer_types",
        "mlp_layer_types",
        "layers_block_type",
        INDEXERS,
        "no_rope_layers",
        "layer_rope_theta",
        "moe_layer_freq",
        "num_attention_heads_per_layer",
        "num_key_value_heads_per_layer",
    }
)
# Layer numbers, under names that do not end as those below.
INDICES = frozenset({"cross_attention_layers", "mlp_only_layers", "moe_layers", "local_layer_ids", "full_attn_idxs"})
_INDEX_ENDINGS = ("_layers", "_layer_ids", "_layer_idxs", "_layer_indices", "_layer_indexes", "_idxs")
# Layer numbers counted from 1.
ONE_BASED = frozenset({"ple_layer_ids"})
# One entry a layer: the number of the layer whose keys and values it reads.
REFERENCES = frozenset({"kv_source_layers"})
# Decoder layers at whose input features of the picture are added, alone or as pairs with a vision layer.
TARGETS = frozenset({"spatial_target_layers", "deepstack_layer_map"})
# How many of the first layers are special.
LEADING = frozenset(
    {"first_k_dense_replace", "max_window_layers", "num_dense_layers", "num_first_full_attention_layers"}
)
# How many of the last layers are special.
SHARED = "num_kv_shared_layers"
TRAILING = frozenset({SHARED, "num_last_full_attention_layers"})
# Index lists without which the language model no longer sees the picture.
VITAL = frozenset({"cross_attention_layers"})

_ELSEWHERE = ("vision_", "spatial_vision_", "encoder_", "mtp_", "audio_", "_")


def config_edits(config: Any, kept: Sequence[int], num_layers: int) -> dict[str, Any]:
    """Return new values for the fields of `config` that speak of decoder layers, once only `kept` of them stay.

    `config` is the decoder's config, or the one around it. Fields that stay the same are left out.

    Raises:
        ModelError: a field speaks of layers in a way that no rule here covers, or can't follow.
    """
    _check_sharing(config, kept, num_layers)
    _check_selections(config, kept)
    edits: dict[str, Any] = {}
    for name, value in vars(config).items():
        if name.startswith(_ELSEWHERE) or not isinstance(value, int | list | tuple | dict):
            continue
        new = _edited(name, value, kept, num_layers)
        if new != value:
            edits[name] = new
    depth = depth_field(config)
    computed = isinstance(getattr(type(config), depth, None), property)
    if not computed and getattr(config, depth, getattr(config, DEPTH, None)) == num_layers:
        edits[depth] = len(kept)
    if getattr(config, "is_heterogeneous", False):
        overrides = {int(layer): values for layer, values in config.to_dict().get(OVERRIDES, {}).items()}
        if overrides:
            edits[OVERRIDES] = {new: overrides[old] for new, old in enumerate(kept) if old in overrides}
    return edits


def cannot_remove(reason: str) -> ModelError:
    """Return the error for layers that must stay, with the reason."""
    return ModelError(
        f"these layers can't be removed: {reason}",
        "decoder layers that nothing else depends on",
        "choose other layers, remove none, or use another model",
    )


def _check_sharing(config: Any, kept: Sequence[int], num_layers: int) -> None:
    """Refuse to part the last layers from the layer whose keys and values they read: the last of their kind before."""
    fields = vars(config)
    first = num_layers - (fields.get(SHARED) or 0)
    kinds = fields.get("layer_types") or [""] * num_layers
    for layer in (layer for layer in kept if layer >= first):
        source = max((other for other in range(first) if kinds[other] == kinds[layer]), default=layer)
        if source not in kept:
            raise cannot_remove(
                f"layer {layer} reads keys and values of layer {source} ({SHARED}={num_layers - first})"
            )


def _check_selections(config: Any, kept: Sequence[int]) -> None:
    """Refuse to part a layer of sparse attention from the one whose choice of tokens it reads: the last full before."""
    kinds = vars(config).get(INDEXERS) or []
    for layer in (layer for layer in kept if layer < len(kinds) and kinds[layer] == "shared"):
        source = max((other for other in range(layer) if kinds[other] == "full"), default=layer)
        if source not in kept:
            raise cannot_remove(f"layer {layer} reads the tokens that layer {source} selects ({INDEXERS})")


def _edited(name: str, value: Any, kept: Sequence[int], num_layers: int) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _edited_count(name, value, kept, num_layers)
    if isinstance(value, list | tuple) and value:
        return _edited_list(name, value, kept, num_layers)
    if isinstance(value, dict) and "layer" in name and value and all(str(key).isdigit() for key in value):
        new_number = new_numbers(kept)
        return {type(key)(new_number[int(key)]): value[key] for key in value if int(key) in new_number}
    return value


def _edited_count(name: str, value: int, kept: Sequence[int], num_layers: int) -> int:
    if name in TRAILING:
        return sum(layer >= num_layers - value for layer in kept)
    # A count at or past the depth means "all layers", and still does after pruning.
    return sum(layer < value for layer in kept) if name in LEADING and value < num_layers else value


def _edited_list(name: str, value: Any, kept: Sequence[int], num_layers: int) -> Any:
    if name in REFERENCES and len(value) == num_layers and _are_numbers(value, num_layers):
        return _edited_references(name, value, kept)
    if name in TARGETS:
        return _edited_targets(name, value, kept)
    if name in ONE_BASED:
        return type(value)(entry + 1 for entry in kept_numbers([entry - 1 for entry in value], kept))
    if _are_indices(name, value, num_layers):
        left = type(value)(kept_numbers(value, kept))
        if name in VITAL and not left:
            raise cannot_remove(f"they are the only ones that look at the picture ({name}={list(value)})")
        return left
    if _is_per_layer(name, value, num_layers):
        # Some configs list more entries than the model has layers: those are never read, and are dropped.
        return type(value)(value[layer] for layer in kept)
    if "layer" in name or name in PER_LAYER | INDICES:
        raise cannot_remove(
            f"the config field {name}={list(value)} speaks of layers in a way that striate does not know"
        )
    return value


def _is_per_layer(name: str, value: Any, num_layers: int) -> bool:
    if name in PER_LAYER or ("layer" in name and all(isinstance(entry, str) for entry in value)):
        return len(value) >= num_layers
    # Token ids may happen to be as many as the layers; numbers that look like those of layers may say anything.
    unclear = "token" in name or ("layer" in name and _are_numbers(value, num_layers) and max(value) > 1)
    return len(value) == num_layers and not unclear


def _are_indices(name: str, value: Any, num_layers: int) -> bool:
    if name in INDICES:
        return all(isinstance(entry, int) for entry in value)
    rising = _are_numbers(value, num_layers) and all(lower < upper for lower, upper in pairwise(value))
    return name not in PER_LAYER and name.endswith(_INDEX_ENDINGS) and rising


def _are_numbers(value: Any, num_layers: int) -> bool:
    return all(type(entry) is int and 0 <= entry < num_layers for entry in value)


def _edited_references(name: str, value: Any, kept: Sequence[int]) -> Any:
    """Return which layer each kept layer reads from, in new numbers."""
    new_number = new_numbers(kept)
    orphans = [layer for layer in kept if value[layer] not in new_number]
    if orphans:
        sources = sorted({value[layer] for layer in orphans})
        raise cannot_remove(
            f"layer {_listed(orphans)} reads keys and values of layer {_listed(sources)} ({name}={list(value)})"
        )
    return type(value)(new_number[value[layer]] for layer in kept)


def _edited_targets(name: str, value: Any, kept: Sequence[int]) -> Any:
    """Return the layers that take features of the picture, or pairs of a vision layer and such a layer."""
    new_number = new_numbers(kept)
    gone = [entry for entry in value if (entry[-1] if isinstance(entry, list | tuple) else entry) not in new_number]
    if gone:
        raise cannot_remove(f"features of the picture enter there ({name}={list(value)})")
    return type(value)(
        type(entry)([*entry[:-1], new_number[entry[-1]]]) if isinstance(entry, list | tuple) else new_number[entry]
        for entry in value
    )


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))

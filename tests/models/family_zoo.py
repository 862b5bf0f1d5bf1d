"""A tiny random LVLM of any model type, made by shrinking its default config field by field."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from family_inputs import Batch, NotBuiltError, make_inputs
from family_rows import ROPE_IN_PARTS, ROWS, Row
from family_timm import stand_in
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

NUM_LAYERS = 8
OTHER_LAYERS = 4
VOCABULARY = 100
IMAGE_TOKEN = 60
HIDDEN = 64
MOST_PARAMETERS = 20_000_000

_DEPTHS = frozenset({"num_hidden_layers", "n_layers", "num_layers", "layers", "depth"})
_DEPTHS |= {"decoder_layers", "encoder_layers", "num_decoder_layers"}
_EXACT: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "img_size": 32,
    "num_channels": 3,
    "in_channels": 3,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 16,
    "query_pre_attn_scalar": 16,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "num_position_embeddings": 16,
    "window_size": 16,
    "sliding_window": 4,
    "sliding_window_size": 4,
    "num_global_layers": 1,
    "partial_rotary_factor": 1.0,
    "projection_dim": HIDDEN,
    "index_topk": 64,
    "index_kpool": 2,
    "d_kv": 16,
    "d_rel": 4,
    "ssm_state_size": 8,
    "max_2d_position_embeddings": 64,
    "hc_lowrank": 8,
    "attention_chunk_size": 4,
}
_TOKENS = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 1, "image": IMAGE_TOKEN, "video": 63, "audio": 64}
_TOKENS |= {"vision_start": 61, "vision_end": 62, "boi": 61, "eoi": 62, "image_start": 61, "image_end": 62}


def model_types() -> list[str]:
    """Return every image-text-to-text model type of this transformers, in alphabetical order."""
    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def tiny_config(model_type: str) -> Any:
    """Return a config of the model type with small sizes and `NUM_LAYERS` decoder layers."""
    row = ROWS.get(model_type, Row())
    default = CONFIG_MAPPING[model_type](**row.start)
    return _shrunk(default, text=default.get_text_config(decoder=True), row=row, path="")


def build_model(model_type: str) -> Any:
    """Return a random model of the type in eval mode.

    Raises:
        NotBuiltError: this machine lacks a package that the model needs.
    """
    stand_in()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = tiny_config(model_type)
            _check_size(model_class(model_type), config)
            model = model_class(model_type)(config)
            _fill_zeros(model)
    except ImportError as error:
        package = next(line for line in str(error).splitlines() if line.strip())
        raise NotBuiltError(package.strip().partition(" but it was not found")[0]) from error
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None
    return model.eval()


def build(model_type: str) -> tuple[Any, Batch]:
    """Return a random model of the type in eval mode, and inputs of two rows with one picture each.

    Raises:
        NotBuiltError: this machine lacks a package that the model needs.
    """
    model = build_model(model_type)
    return model, make_inputs(model, ROWS.get(model_type, Row()))


def model_class(model_type: str) -> Any:
    """Return the class that `AutoModelForImageTextToText` uses for the type."""
    return getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])


def _check_size(cls: Any, config: Any) -> None:
    """Refuse a model that the rules did not make small: it would not fit into a test."""
    with torch.device("meta"):
        skeleton = cls(copy.deepcopy(config))
    count = sum(tensor.numel() for tensor in skeleton.parameters())
    if count > MOST_PARAMETERS:
        largest = max(skeleton.named_parameters(), key=lambda entry: entry[1].numel())
        raise ValueError(f"{count:,} parameters, of which {largest[0]} of shape {tuple(largest[1].shape)}")


def _shrunk(config: Any, text: Any, row: Row, path: str) -> Any:
    """Return a config of the same class with small sizes; sub-configs first."""
    is_text = type(config) is type(text)
    depth = _depth(config)
    fields: dict[str, Any] = {}
    known = _accepted(type(config))
    if getattr(config, "is_heterogeneous", False):
        overrides = {int(layer): values for layer, values in config.to_dict()["per_layer_config"].items()}
        fields["per_layer_config"] = {
            layer: {
                name: _small(name, value, SimpleNamespace(**values), depth, is_text) for name, value in values.items()
            }
            for layer, values in overrides.items()
            if layer < NUM_LAYERS
        }
    public = {field: name for name, field in type(config).attribute_map.items()}
    for field_name, value in vars(config).items():
        name = field_name if field_name in known else public.get(field_name, field_name)
        if name.startswith("_") or (name not in known and not isinstance(value, PretrainedConfig)):
            continue
        place = f"{path}.{name}".lstrip(".")
        if isinstance(value, PretrainedConfig):
            fields[name] = _shrunk(value, text, row, place)
        else:
            fields[name] = _small(name, value, config, depth, is_text)
    prefix = f"{path}." if path else ""
    for place, value in row.config.items():
        if place.startswith(prefix) and "." not in place[len(prefix) :]:
            fields[place[len(prefix) :]] = copy.deepcopy(value)
    if is_text:
        fields.update(copy.deepcopy(dict(row.text)))
    try:
        return type(config)(**fields)
    except AttributeError:
        # Older configs of an encoder and a decoder take dicts.
        return type(config)(**{name: _as_dict(value) for name, value in fields.items()})


def _as_dict(value: Any) -> Any:
    """Return a config as a dict, anything else as it is."""
    return value.to_dict() if isinstance(value, PretrainedConfig) else value


def _accepted(cls: type) -> set[str]:
    """Return the names that a config class takes."""
    names = set(inspect.signature(cls.__init__).parameters)
    for base in cls.__mro__:
        names |= set(getattr(base, "__annotations__", {}))
    return names - {"self", "kwargs", "model_type", "transformers_version", "dtype", "id2label", "label2id"}


def _depth(config: Any) -> int:
    """Return how many layers a config speaks of, 0 if it does not say."""
    found = (vars(config).get(name) for name in sorted(_DEPTHS))
    return next((value for value in found if isinstance(value, int)), 0)


def _small(name: str, value: Any, config: Any, depth: int, is_text: bool) -> Any:
    """Return a small value for one field."""
    layers = NUM_LAYERS if is_text else OTHER_LAYERS
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if ("token" in name or name == "image_patch_id") and name.endswith(("_id", "_index", "_ids")):
        return _small_token(name, value)
    if isinstance(value, dict):
        mrope = is_text and getattr(config, "model_type", "") in ROPE_IN_PARTS
        return _small_rope(value, mrope) if name.startswith("rope") else value
    if isinstance(value, list | tuple):
        return _small_list(name, value, depth, layers)
    if name in _EXACT and value and isinstance(value, float) is isinstance(_EXACT[name], float):
        return _EXACT[name]
    if isinstance(value, float):
        return 0.0 if "dropout" in name or "drop_path" in name else value
    if name == "num_key_value_heads" and value == vars(config).get("num_attention_heads"):
        return 4
    return _small_int(name, value, layers)


def _small_token(name: str, value: Any) -> Any:
    """Return a token id within the small vocabulary."""
    kind = (
        name.removesuffix("_id")
        .removesuffix("_index")
        .removesuffix("_ids")
        .removesuffix("_token")
        .removesuffix("_patch")
    )
    if isinstance(value, list | tuple):
        return type(value)(40 + index for index, _ in enumerate(value)) if kind not in _TOKENS else _TOKENS[kind]
    return _TOKENS.get(kind, 40 + sum(map(ord, kind)) % 20)


def _small_rope(value: Mapping[str, Any], mrope: bool) -> dict[str, Any]:
    """Return rope settings for heads of 16, nested ones too."""
    small = {key: _small_rope(entry, mrope) if isinstance(entry, dict) else entry for key, entry in value.items()}
    if "partial_rotary_factor" in small:
        small["partial_rotary_factor"] = 1.0
    if "rope_theta" in small and (mrope or "mrope_section" in small):
        small["mrope_section"] = [4, 2, 2]
    return small


def _small_list(name: str, value: Any, depth: int, layers: int) -> Any:
    """Return a list about layers cut to the small depth; other lists of numbers keep only what fits."""
    if depth and len(value) == depth:
        return type(value)(value[:layers])
    numbers = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value)
    if name in ("image_size", "patch_size"):
        return type(value)(_EXACT[name] for _ in value)
    of_layers = numbers and bool(value) and any(word in name for word in ("index", "idx", "layer"))
    if of_layers and min(value) >= 0 and max(value) < depth:
        step = max(1, layers // (len(value) + 1))
        return type(value)(range(0, layers, step))[: min(len(value), 2)]
    return value


def _small_int(name: str, value: int, layers: int) -> int:
    """Return a small number for a size, a count of heads, experts or layers, by the field's name."""
    if name in _DEPTHS:
        return layers
    if value < 4:
        return value
    if "vocab" in name:
        return VOCABULARY
    rules = (
        (("key_value_heads", "kv_heads"), 2),
        (("num_attention_heads", "num_heads", "attention_heads", "n_heads"), 4),
        (("head_dim", "dim_head"), 16),
        (("per_tok",), 2),
        (("experts",), 4),
        (("moe_intermediate", "shared_expert", "expert_dim"), 32),
        (("intermediate", "ffn_dim", "d_ff", "mlp_dim"), 96),
        (
            (
                "hidden_size",
                "d_model",
                "embed_dim",
                "projection_dim",
                "output_dim",
                "hidden_dim",
                "out_dim",
                "in_dim",
                "input_size",
                "proj_dim",
            ),
            HIDDEN,
        ),
        (("num_image_tokens", "image_seq_length", "tokens_per_image"), 16),
        (("first_k_dense", "num_dense"), 2),
    )
    return next((size for words, size in rules if any(word in name for word in words)), value)


def _fill_zeros(model: Any) -> None:
    """Give random values to tensors that start as zeros: closed gates and empty projectors would hide mistakes."""
    with torch.no_grad():
        for _, tensor in model.named_parameters():
            if tensor.is_floating_point() and not bool(tensor.any()):
                tensor.normal_(std=0.1)

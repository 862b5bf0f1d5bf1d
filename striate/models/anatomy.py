"""Where an LVLM keeps its vision encoder, projector and decoder layers, through Hugging Face's own accessors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from striate.errors import ModelError
from striate.models.families import FAMILIES, family_of

VISION = "vision encoder"
PROJECTOR = "projector"
DECODER_LAYER = "decoder layer"
EMBEDDINGS = "embeddings"
LM_HEAD = "LM head"
OTHER = "other"
COMPONENTS = (VISION, PROJECTOR, EMBEDDINGS, DECODER_LAYER, LM_HEAD, OTHER)

_PEFT_PREFIX = "base_model.model."
_IMAGE_TOKEN_FIELDS = ("image_token_id", "image_token_index")


@dataclass(frozen=True)
class Anatomy:
    """The parts of one LVLM by dotted module name, in the model without PEFT's wrapper.

    Attributes:
        model_type: `config.model_type`.
        layers_name: the decoder stack, such as `model.language_model.layers`.
        vision_names: the vision encoder.
        projector_names: the projector's modules; they may lie inside the vision encoder.
        num_layers: decoder layers.
        image_token_ids: ids that stand for image tokens in `input_ids`.
        embedding_names: the input embeddings.
        head_names: the LM head; empty when the model has none.
    """

    model_type: str
    layers_name: str
    vision_names: tuple[str, ...]
    projector_names: tuple[str, ...]
    num_layers: int
    image_token_ids: tuple[int, ...]
    embedding_names: tuple[str, ...] = ()
    head_names: tuple[str, ...] = ()


def unwrap(model: nn.Module) -> Any:
    """Return the transformers model inside `model`: without PEFT, `torch.compile` or data-parallel wrappers."""
    current: Any = model
    while True:
        if hasattr(current, "peft_config") and callable(getattr(current, "get_base_model", None)):
            current = current.get_base_model()
        elif isinstance(current, nn.DataParallel | nn.parallel.DistributedDataParallel):
            current = current.module
        elif "_orig_mod" in current._modules:
            current = current._orig_mod
        else:
            return current


def find_decoder(model: nn.Module) -> Any:
    """Return the module that holds the decoder stack in its `layers`.

    Raises:
        ModelError: the model has no such module.
    """
    decoder: Any = unwrap(model)
    # Llama4's accessor returns a causal LM: its stack is one step deeper.
    for _ in range(3):
        decoder = decoder.get_decoder() if callable(getattr(decoder, "get_decoder", None)) else decoder
        if isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            return decoder
        decoder = getattr(decoder, "model", decoder)
    raise ModelError(
        f"{_name_of(model)} has no decoder stack that `get_decoder().layers` finds",
        "a vision-language model with a decoder-only language model",
        "see `striate ls families` for the families known to work",
    )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder layers of the language model, first to last; works on PEFT-wrapped models.

    Raises:
        ModelError: the model has no decoder stack.
    """
    return find_decoder(model).layers


def find_anatomy(model: nn.Module) -> Anatomy:
    """Return where the parts of `model` are.

    Raises:
        ModelError: a text-only model, no projector found, or the layer count and the config disagree.
    """
    core = unwrap(model)
    vision = _vision_encoder(core)
    text_config = core.config.get_text_config(decoder=True)
    if text_config.is_encoder_decoder or core.config.is_encoder_decoder:
        raise ModelError(
            f"the language model of {_name_of(core)} is an encoder-decoder: its decoder never sees image tokens",
            "a vision-language model with a decoder-only language model",
            "see `striate ls families` for the families known to work",
        )
    layers = decoder_layers(core)
    if text_config.num_hidden_layers != len(layers):
        raise ModelError(
            f"the config of {_name_of(core)} says {text_config.num_hidden_layers} decoder layers,"
            f" the model has {len(layers)}",
            "a config and weights of one model",
            "use striate.prune to remove layers: it edits both",
        )
    names = {id(module): name for name, module in core.named_modules()}
    if any(layer is module for module in vision.modules() for layer in layers):
        raise ModelError(
            f"the decoder layers of {_name_of(core)} lie inside its vision encoder",
            "a vision encoder beside a language model",
            "see `striate ls families` for the families known to work",
        )
    return Anatomy(
        model_type=core.config.model_type,
        layers_name=names[id(layers)],
        vision_names=(names[id(vision)],),
        projector_names=_projector_names(core),
        num_layers=len(layers),
        image_token_ids=_image_token_ids(core.config),
        embedding_names=_names_of(names, core.get_input_embeddings()),
        head_names=_names_of(names, core.get_output_embeddings()),
    )


def plain_name(name: str) -> str:
    """Return a parameter or module name without the prefix that PEFT puts before it."""
    return name.removeprefix(_PEFT_PREFIX)


def component_of(anatomy: Anatomy, parameter_name: str) -> str:
    """Return which of `COMPONENTS` the parameter belongs to; PEFT's names work too."""
    name = plain_name(parameter_name)
    # The projector goes first: in Qwen-VL models it lies inside the vision encoder.
    places = (
        (PROJECTOR, anatomy.projector_names),
        (VISION, anatomy.vision_names),
        (DECODER_LAYER, (anatomy.layers_name,)),
        (EMBEDDINGS, anatomy.embedding_names),
        (LM_HEAD, anatomy.head_names),
    )
    for component, prefixes in places:
        if any(name.startswith(f"{prefix}.") for prefix in prefixes):
            return component
    return OTHER


def layer_of(anatomy: Anatomy, parameter_name: str) -> int | None:
    """Return the decoder layer that the parameter or module lies in, or None; PEFT's names work too."""
    rest = plain_name(parameter_name).removeprefix(f"{anatomy.layers_name}.")
    index = rest.partition(".")[0]
    return int(index) if rest != plain_name(parameter_name) and index.isdigit() else None


def _vision_encoder(core: Any) -> nn.Module:
    """Return the vision encoder, refusing text-only models."""
    find = getattr(core, "get_encoder", None)
    encoder = find(modality="image") if callable(find) else core
    # The accessor answers with a model itself when it finds no encoder in it.
    if isinstance(encoder, nn.Module) and encoder is not core and encoder is not getattr(core, "base_model", None):
        return encoder
    raise text_only(_name_of(core))


def text_only(name: str) -> ModelError:
    """Return the error for a model without a vision encoder."""
    return ModelError(
        f"{name} is a text-only model: it has no vision encoder",
        "a vision-language model such as LLaVA, Qwen2.5-VL, Gemma 3 or SmolVLM",
        "choose another model; see `striate ls families`",
    )


def _projector_names(core: Any) -> tuple[str, ...]:
    """Return the names of the projector's modules, from the family's row or the usual names."""
    prefix = f"{core.base_model_prefix}." if core.base_model is not core else ""
    family = family_of(core.config.model_type)
    modules = dict(core.named_modules())
    found = tuple(prefix + name for name in family.projectors if prefix + name in modules)
    if found:
        return found
    raise ModelError(
        f"no projector found in {_name_of(core)} (model type {core.config.model_type!r})",
        "one of the modules " + ", ".join(prefix + name for name in family.projectors),
        "known families: " + ", ".join(row.model_type for row in FAMILIES),
    )


def _image_token_ids(config: Any) -> tuple[int, ...]:
    """Return the distinct image token ids that the config names."""
    found = (getattr(config, field, None) for field in _IMAGE_TOKEN_FIELDS)
    return tuple(sorted({token for token in found if isinstance(token, int)}))


def _names_of(names: dict[int, str], module: Any) -> tuple[str, ...]:
    """Return the dotted name of `module` as a tuple, empty when the model has no such part."""
    return (names[id(module)],) if id(module) in names else ()


def _name_of(model: nn.Module) -> str:
    """Return what errors call the model: its class, and its path where it has one."""
    core = unwrap(model)
    path = getattr(getattr(core, "config", None), "name_or_path", "")
    return f"{type(core).__name__} ({path})" if path else type(core).__name__

"""Finds an LVLM's vision encoder, projector, decoder layers, embeddings and LM head by Hugging Face's own accessors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from striate.errors import ModelError
from striate.models.structure.decoder_stack import (
    decoder_config,
    decoder_layers,
    depth_field,
    find_stack,
    name_of,
    unwrap,
)
from striate.models.structure.families import BROKEN, family_of
from striate.models.structure.vision_modules import part_of, projector_names, vision_names

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
        companion_names: lists beside the decoder stack with one entry a decoder layer, which belongs to that layer.
        encoder_decoder: whether the decoder attends to an encoder, and never sees image tokens itself.
        cross_attends: whether the decoder attends to the vision encoder's output, instead of reading image tokens.
    """

    model_type: str
    layers_name: str
    vision_names: tuple[str, ...]
    projector_names: tuple[str, ...]
    num_layers: int
    image_token_ids: tuple[int, ...]
    embedding_names: tuple[str, ...] = ()
    head_names: tuple[str, ...] = ()
    companion_names: tuple[str, ...] = ()
    encoder_decoder: bool = False
    cross_attends: bool = False

    def image_mask(self, ids_BT: Tensor) -> Tensor:
        """Return which of the token ids `ids_BT` stand for image tokens, bool, shape (B, T)."""
        return torch.isin(ids_BT, torch.tensor(self.image_token_ids, dtype=ids_BT.dtype, device=ids_BT.device))


def find_anatomy(model: nn.Module) -> Anatomy:
    """Return where the parts of `model` are.

    Raises:
        ModelError: a text-only model, a family that can't be used, no projector found, or the layer count and the
            config disagree.
    """
    core = unwrap(model)
    _check_usable(core)
    vision = vision_names(core)
    stack = find_stack(core)
    depth = _checked_depth(core)
    names = {id(module): name for name, module in core.named_modules()}
    holder = names[id(stack.holder)]
    return Anatomy(
        model_type=core.config.model_type,
        layers_name=names[id(stack.layers)],
        vision_names=vision,
        projector_names=projector_names(core, vision),
        num_layers=depth,
        image_token_ids=_image_token_ids(core.config),
        embedding_names=_names_of(names, part_of(core.get_input_embeddings)),
        head_names=_names_of(names, part_of(core.get_output_embeddings)),
        companion_names=tuple(f"{holder}.{name}".lstrip(".") for name in stack.companions),
        encoder_decoder=bool(core.config.is_encoder_decoder or decoder_config(core).is_encoder_decoder),
        cross_attends=any("cross" in name for name, _ in stack.holder.named_modules()),
    )


def check_decoder_only(anatomy: Anatomy) -> None:
    """Return if the model reads a conversation with its pictures in one sequence.

    Raises:
        ModelError: an encoder-decoder, whose decoder never sees the prompt.
    """
    if anatomy.encoder_decoder:
        raise ModelError(
            f"{anatomy.model_type} is an encoder-decoder: its prompts are not conversations",
            "an LVLM whose decoder reads image and text tokens in one sequence, for data, scores and answers",
            "`striate inspect`, apply_region, lora_config and layer removal work on it",
        )


def _check_usable(core: Any) -> None:
    """Refuse a family that is no LVLM, and one that the installed transformers itself can't run."""
    model_type = core.config.model_type
    family = family_of(model_type)
    if family.refused:
        raise ModelError(
            f"{name_of(core)} can't be used: {family.refused}",
            "a vision-language model that reads pictures and answers in text, token by token",
            "choose another model; see `striate ls families`",
        )
    release = ".".join(transformers.__version__.split(".")[:2])
    failure = BROKEN.get((model_type, release))
    if failure:
        raise ModelError(
            f"{name_of(core)} can't be used with transformers {release}: {failure}",
            "another release of transformers: this one's own code of the family fails",
            f"pip install 'transformers<{release}'",
        )


def _checked_depth(core: Any) -> int:
    layers = decoder_layers(core)
    config = decoder_config(core)
    configured = getattr(config, depth_field(config))
    if configured != len(layers):
        raise ModelError(
            f"the config of {name_of(core)} says {configured} decoder layers, the model has {len(layers)}",
            "a config and weights of one model",
            "use striate.prune to remove layers: it edits both",
        )
    return len(layers)


def plain_name(name: str) -> str:
    """Return a parameter or module name without the prefix that PEFT puts before it."""
    return name.removeprefix(_PEFT_PREFIX)


def component_of(anatomy: Anatomy, parameter_name: str) -> str:
    """Return which of `COMPONENTS` the parameter belongs to; PEFT's names work too."""
    name = plain_name(parameter_name)
    # The projector is looked at first: in Qwen-VL models it lies inside the vision encoder.
    places = (
        (PROJECTOR, anatomy.projector_names),
        (VISION, anatomy.vision_names),
        (DECODER_LAYER, (anatomy.layers_name, *anatomy.companion_names)),
        (EMBEDDINGS, anatomy.embedding_names),
        (LM_HEAD, anatomy.head_names),
    )
    for component, prefixes in places:
        if any(name.startswith(f"{prefix}.") for prefix in prefixes):
            return component
    return OTHER


def layer_of(anatomy: Anatomy, parameter_name: str) -> int | None:
    """Return the decoder layer that the parameter or module lies in, or None; PEFT's names work too."""
    name = plain_name(parameter_name)
    for layers in (anatomy.layers_name, *anatomy.companion_names):
        rest = name.removeprefix(f"{layers}.")
        index = rest.partition(".")[0]
        if rest != name and index.isdigit():
            return int(index)
    return None


def _image_token_ids(config: Any) -> tuple[int, ...]:
    ids = (getattr(config, field, None) for field in _IMAGE_TOKEN_FIELDS)
    return tuple(sorted({token for token in ids if isinstance(token, int)}))


def _names_of(names: dict[int, str], module: Any) -> tuple[str, ...]:
    """Return the dotted name of `module` as a tuple, empty when the model has no such part."""
    return (names[id(module)],) if id(module) in names else ()

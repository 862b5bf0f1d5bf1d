"""Finds the vision encoder and the projector by the family's row, else by one set of rules for every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from striate.errors import ModelError
from striate.models.structure.decoder_stack import find_stack, name_of
from striate.models.structure.families import FAMILIES, Family, family_of

_VISION_WORDS = ("vision", "visual", "image", "video")
_PROJECTOR_WORDS = (
    "proj",
    "connector",
    "aligner",
    "merger",
    "adapter",
    "former",
    "perceiver",
    "resampler",
    "abstractor",
    "bridge",
    "embed_vision",
    "visual_embed",
)
# Parts for sound and for making pictures do not lead pictures to the language model.
_OTHER_WORDS = ("audio", "speech", "generation", "protein", "action")


def text_only(name: str) -> ModelError:
    """Return the error for a model without a vision encoder."""
    return ModelError(
        f"{name} is a text-only model: it has no vision encoder",
        "a vision-language model such as LLaVA, Qwen2.5-VL, Gemma 3 or SmolVLM",
        "choose another model; see `striate ls families`",
    )


def vision_names(core: Any) -> tuple[str, ...]:
    """Return the dotted names of the vision encoder's modules.

    Raises:
        ModelError: there is none.
    """
    modules = dict(core.named_modules())
    family = family_of(core.config.model_type)
    listed = tuple(name for name in _prefixed(core, family.vision) if name in modules)
    if listed:
        return listed
    main = _by_accessor(core, modules) or _by_main_input(core, modules) or _by_word(core, modules)
    if main is None:
        raise text_only(name_of(core))
    parent = main.rpartition(".")[0]
    beside = _children(core, modules, parent)
    return (main, *(name for name in beside if name != main and _is_vision(name) and not _is_projector(name)))


def projector_names(core: Any, vision: tuple[str, ...]) -> tuple[str, ...]:
    """Return the dotted names of the projector's modules; they may lie inside the vision encoder.

    Empty when nothing stands between the vision encoder and the language model, as in models whose decoder attends to
    the vision encoder itself, or that turn pictures into tokens of the vocabulary.

    Raises:
        ModelError: modules beside the vision encoder which may be a projector, but have no name of one.
    """
    modules = dict(core.named_modules())
    family = family_of(core.config.model_type)
    listed = tuple(name for name in _prefixed(core, family.projectors) if name in modules)
    if listed:
        return listed
    parent = vision[0].rpartition(".")[0]
    beside = [name for name in _children(core, modules, parent) if name not in vision]
    projectors = tuple(name for name in beside if _is_projector(name)) or _inside(core, modules, vision)
    unknown = [name for name in beside if not _is_other(name)]
    if family.projectors or (unknown and not projectors):
        raise _no_projector(core, family, unknown)
    return projectors


def part_of(find: Callable[[], Any]) -> Any:
    """Return what an accessor of the model finds; some models have the accessor but no such part."""
    try:
        return find()
    except NotImplementedError:
        return None


def _by_accessor(core: Any, modules: dict[str, nn.Module]) -> str | None:
    """Return the vision encoder's name that Hugging Face's accessor gives, if it gives one."""
    find = getattr(core, "get_encoder", None)
    try:
        encoder = find(modality="image") if callable(find) else core
    except (AttributeError, TypeError, ValueError):
        return None
    # The accessor answers with a model itself when it finds no encoder in it.
    if not isinstance(encoder, nn.Module) or encoder is core or encoder is getattr(core, "base_model", None):
        return None
    name = next((name for name, module in modules.items() if module is encoder), None)
    if name is None or _holds(encoder, find_stack(core).layers):
        return None
    # An encoder of text and pictures holds the vision encoder.
    inner = [child for child in _children(core, modules, name) if _is_vision(child) and not _is_projector(child)]
    reads_text = any(isinstance(module, nn.Embedding) and "token" in path for path, module in encoder.named_modules())
    return inner[0] if inner and reads_text else name


def _by_main_input(core: Any, modules: dict[str, nn.Module]) -> str | None:
    if core.main_input_name == "input_ids":
        return None
    names = [name for name in modules if name.rpartition(".")[2] == "encoder"]
    return next((name for name in names if not _holds(modules[name], find_stack(core).layers)), None)


def _by_word(core: Any, modules: dict[str, nn.Module]) -> str | None:
    layers = find_stack(core).layers
    names = [name for name in modules if (_is_vision(name) or _is_codec(name)) and not _is_other_word(name)]
    names = [name for name in names if _has_weights(modules[name]) and not _holds(modules[name], layers)]
    # Where pictures enter through one module, it has the name of a projector.
    return min(names, key=lambda name: (_is_projector(name), name.count(".")), default=None)


def _inside(core: Any, modules: dict[str, nn.Module], vision: tuple[str, ...]) -> tuple[str, ...]:
    names = [child for name in vision for child in _children(core, modules, name)]
    projectors = tuple(name for name in names if _is_projector(name))
    # The projection of patches that is all of a vision encoder is no projector of its own.
    return projectors if len(projectors) < len(names) else ()


def _children(core: Any, modules: dict[str, nn.Module], parent: str) -> list[str]:
    """Return the names of the children of `parent` that have parameters, without decoder, embeddings and LM head."""
    layers = find_stack(core).layers
    left_out = {id(part_of(core.get_input_embeddings)), id(part_of(core.get_output_embeddings))}
    left_out |= {id(module) for module in layers.modules()}
    names = []
    for child, module in modules[parent].named_children():
        if id(module) not in left_out and _has_weights(module) and not _surrounds(module, layers):
            names.append(f"{parent}.{child}".lstrip("."))
    return names


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _holds(module: nn.Module, layers: nn.ModuleList) -> bool:
    """Return whether the decoder stack lies in `module`, or around it."""
    return _surrounds(module, layers) or any(child is module for child in layers.modules())


def _surrounds(module: nn.Module, layers: nn.ModuleList) -> bool:
    return any(child is layers for child in module.modules())


def _is_vision(name: str) -> bool:
    return any(word in name.rpartition(".")[2] for word in _VISION_WORDS)


def _is_codec(name: str) -> bool:
    """Return whether the last part of a name is that of an encoder of pictures as tokens of the vocabulary."""
    return name.rpartition(".")[2].startswith("vq")


def _is_projector(name: str) -> bool:
    last = name.rpartition(".")[2]
    return any(word in last for word in _PROJECTOR_WORDS) and not _is_other_word(name)


def _is_other_word(name: str) -> bool:
    """Return whether a name speaks of something that is neither text nor pictures to read."""
    return any(word in name for word in _OTHER_WORDS)


def _is_other(name: str) -> bool:
    """Return whether a module beside the vision encoder can't be a projector: sound, norms, lists of layers."""
    last = name.rpartition(".")[2]
    return _is_other_word(name) or any(word in last for word in ("norm", "layers", "embed_tokens", "encoder", "head"))


def _prefixed(core: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    prefix = f"{core.base_model_prefix}." if core.base_model is not core else ""
    return tuple(prefix + name for name in names)


def _no_projector(core: Any, family: Family, unknown: list[str]) -> ModelError:
    perhaps = f": it may be {' or '.join(unknown)}" if unknown else ""
    names = ", ".join(_prefixed(core, family.projectors))
    return ModelError(
        f"no projector found in {name_of(core)} (model type {core.config.model_type!r}){perhaps}",
        names or f"a module beside or in the vision encoder with one of {', '.join(_PROJECTOR_WORDS)} in its name",
        "known families: " + ", ".join(row.model_type for row in FAMILIES),
    )

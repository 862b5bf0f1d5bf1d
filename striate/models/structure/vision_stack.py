"""Finds the layers of a vision encoder: its lists of blocks that are alike, as far as features come from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from striate.errors import ModelError
from striate.models.structure.anatomy import Anatomy, find_anatomy, plain_name, unwrap
from striate.models.structure.decoder_stack import name_of

_LISTS = (nn.ModuleList, nn.Sequential)
# What families with several feature levels call the level that their features are of.
_LEVEL = "vision_feature_layer"


@dataclass(frozen=True)
class VisionStack:
    """The layers of a vision encoder by dotted module name, first to last, without those that no feature passes."""

    names: tuple[str, ...]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def layer_of(self, name: str) -> int | None:
        """Return the layer that a parameter or module lies in, or None; PEFT's names work too."""
        parts = plain_name(name).split(".")
        prefixes = (".".join(parts[: index + 1]) for index, part in enumerate(parts) if part.isdigit())
        return next((self._places[prefix] for prefix in prefixes if prefix in self._places), None)


def find_vision_stack(model: nn.Module, anatomy: Anatomy | None = None) -> VisionStack:
    """Return the layers of the model's vision encoder; of several lists, such as two encoders', one behind the other.

    Layers behind the one that a family takes its features from (LLaVA-1.5's last) are left out: nothing they compute
    is used.

    Raises:
        ModelError: the encoder is no stack of layers that a gradient passes, and why.
    """
    core, anatomy = unwrap(model), anatomy or find_anatomy(model)
    modules = dict(core.named_modules())
    # Beside an encoder of pictures some families have one of videos.
    encoders = [name for name in anatomy.vision_names if "video" not in name.rpartition(".")[2]] or anatomy.vision_names
    inside = [(name, module) for encoder in encoders for name, module in _below(modules, encoder, anatomy)]
    if any("VectorQuantizer" in type(module).__name__ for _, module in inside):
        raise _no_stack(core, "it turns pictures into tokens of a vocabulary, and no gradient passes that choice")
    lists: list[str] = []
    for name, module in inside:
        nested = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, _LISTS) and not nested and len(module) > 1 and len({*map(_kind, module)}) == 1:
            lists.append(name)
    if not lists:
        raise _no_stack(core, "it has no list of layers that are alike")
    if any(isinstance(child, _LISTS) for name in lists for child in modules[name]):
        raise _no_stack(core, "its layers are lists of layers themselves")
    children = {name: [child for child, _ in modules[name].named_children()] for name in lists}
    reached = {name: inner[: _reached(core.config, len(inner))] for name, inner in children.items()}
    return VisionStack(tuple(f"{name}.{child}" for name, inner in reached.items() for child in inner))


def encoder_layers(model: nn.Module) -> list[Any]:
    """Return the layers of the model's vision encoder, of one that PEFT copied the copy; none if it is no stack."""
    try:
        names = find_vision_stack(model).names
    except ModelError:
        return []
    modules = dict(unwrap(model).named_modules())
    return [_copied(modules[name]) for name in names]


def _below(modules: dict[str, nn.Module], encoder: str, anatomy: Anatomy) -> list[tuple[str, nn.Module]]:
    """Return the modules of an encoder by name, without the projector's."""
    outside = tuple(f"{name}." for name in anatomy.projector_names)
    below = [name for name in modules if name == encoder or name.startswith(f"{encoder}.")]
    return [(name, modules[name]) for name in below if not f"{name}.".startswith(outside)]


def _kind(module: nn.Module) -> type:
    """Return the class of a layer, of one that PEFT copied too."""
    return type(getattr(module, "original_module", module))


def _copied(module: Any) -> Any:
    """Return PEFT's copy of a layer that trains in full, or the layer itself."""
    return module.modules_to_save[module.active_adapters[0]] if hasattr(module, "modules_to_save") else module


def _reached(config: Any, depth: int) -> int:
    """Return how many of `depth` layers the features pass: level k is the output of k layers, -1 that of all."""
    level = getattr(config, _LEVEL, None)
    levels = [level] if isinstance(level, int) else [one for one in level or () if isinstance(one, int)]
    return max((one if one >= 0 else depth + 1 + one for one in levels), default=depth)


def _no_stack(core: Any, why: str) -> ModelError:
    return ModelError(
        f"the vision encoder of {name_of(core)} can't be trained layer by layer: {why}",
        "train.vision=frozen on this model; lora or full where the encoder is a stack of layers",
        "use --set train.vision=frozen; the projector and the decoder layers train all the same",
    )

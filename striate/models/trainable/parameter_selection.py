"""Selects the parameters that train by name: a plain model's weights, or a PEFT model's adapters."""

from __future__ import annotations

from torch import nn

from striate.artifacts import Region
from striate.errors import TrainingError
from striate.models.structure.anatomy import DECODER_LAYER, PROJECTOR, Anatomy, component_of, find_anatomy, layer_of
from striate.models.structure.families import UNTRAINABLE
from striate.models.structure.vision_stack import VisionStack, find_vision_stack
from striate.models.trainable.beside import Beside

ALONE = Beside()
"""A region as the paper trains it: with the whole projector, and the vision encoder frozen."""


def is_adapted(model: nn.Module) -> bool:
    """Return whether `model` carries PEFT adapters."""
    return any(is_adapter_name(name) for name, _ in model.named_parameters())


def chosen_parameters(model: nn.Module, region: Region, beside: Beside = ALONE) -> set[str]:
    """Return the names of the parameters that the region chooses, and what trains beside it.

    On a model with adapters these are the adapters in the region's layers, and of the projector and the vision encoder
    adapters or PEFT's trained copies.

    Raises:
        TrainingError: a region of another depth.
        ModelError: layers of the vision encoder shall train, and it has none.
    """
    anatomy, vision = checked_anatomy(model, region), vision_layers(model, beside)
    adapted = is_adapted(model)
    chosen = set()
    for name, _ in model.named_parameters():
        component, part = component_of(anatomy, name), "frozen"
        if component == DECODER_LAYER and layer_of(anatomy, name) in region.layers:
            part = "lora" if adapted else "full"
        elif component == PROJECTOR:
            part = beside.projector
        elif vision is not None and vision.layer_of(name) is not None:
            part = beside.vision
        if part != "frozen" and can_train(name) and (not adapted or _is_adapter_of(name, part)):
            chosen.add(name)
    return chosen


def vision_layers(model: nn.Module, beside: Beside) -> VisionStack | None:
    """Return the layers of the vision encoder that train; None where it is frozen.

    Raises:
        ModelError: it is no stack of layers.
        TrainingError: `vision_region` is of another number of layers, or has none.
    """
    if beside.vision == "frozen":
        return None
    stack, region = find_vision_stack(model), beside.vision_region
    if region is None:
        return stack
    if region.num_layers != len(stack.names) or not region.layers:
        raise TrainingError(
            f"layers {region.spec!r} of the vision encoder are {len(region)} of {region.num_layers}, and features pass"
            f" {len(stack.names)} of its layers",
            f"one layer or more of {len(stack.names)}",
            "choose train.vision_layers again, or set train.vision=frozen",
        )
    return VisionStack(tuple(stack.names[index] for index in region.layers))


def _is_adapter_of(name: str, part: str) -> bool:
    """Return whether a parameter is a LoRA factor, or with `full` PEFT's trained copy."""
    return (".modules_to_save." if part == "full" else ".lora_") in name


def can_train(name: str) -> bool:
    """Return whether the loss reaches a parameter or module: it passes no gradient through a choice of the top k."""
    return not any(part in UNTRAINABLE for part in name.split("."))


def is_adapter_name(name: str) -> bool:
    """Return whether a parameter is one that PEFT added: a LoRA factor, or its trained copy of a module."""
    return ".lora_" in name or ".modules_to_save." in name


def checked_anatomy(model: nn.Module, region: Region) -> Anatomy:
    """Return the anatomy of `model`.

    Raises:
        TrainingError: the region was made for another depth.
    """
    anatomy = find_anatomy(model)
    if region.num_layers != anatomy.num_layers:
        raise TrainingError(
            f"region {region.spec!r} is for {region.num_layers} decoder layers, the model has {anatomy.num_layers}",
            f"a region of {anatomy.num_layers} decoder layers",
            "run `striate select` on this model",
        )
    return anatomy

"""Selects the parameters of a region and the projector by name: a plain model's weights, or a PEFT model's adapters."""

from __future__ import annotations

from torch import nn

from striate.artifacts import Region
from striate.errors import TrainingError
from striate.models.structure.anatomy import DECODER_LAYER, PROJECTOR, Anatomy, component_of, find_anatomy, layer_of
from striate.models.structure.families import UNTRAINABLE


def is_adapted(model: nn.Module) -> bool:
    """Return whether `model` carries PEFT adapters."""
    return any(is_adapter_name(name) for name, _ in model.named_parameters())


def chosen_parameters(model: nn.Module, region: Region, *, train_projector: bool = True) -> set[str]:
    """Return the names of the parameters that the region and the projector choose.

    On a model with adapters these are the adapters in the region's layers and PEFT's trained copy of the projector.

    Raises:
        TrainingError: a region of another depth.
    """
    anatomy = checked_anatomy(model, region)
    adapted = is_adapted(model)
    chosen = set()
    for name, _ in model.named_parameters():
        component = component_of(anatomy, name)
        in_region = component == DECODER_LAYER and layer_of(anatomy, name) in region.layers
        in_projector = component == PROJECTOR and train_projector
        if (in_region or in_projector) and can_train(name) and (not adapted or is_adapter_name(name)):
            chosen.add(name)
    return chosen


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

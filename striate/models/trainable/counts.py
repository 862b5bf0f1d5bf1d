"""Counts what trains, by component and by decoder layer, and says it in words."""

from __future__ import annotations

from collections import defaultdict

from peft import LoraConfig
from torch import nn

from striate.artifacts import ComponentCount, Region, Trainable
from striate.models.structure.anatomy import COMPONENTS, DECODER_LAYER, component_of, layer_of
from striate.models.trainable.lora_modules import value_of
from striate.models.trainable.parameter_selection import checked_anatomy


def count_trainable(model: nn.Module, region: Region, method: str) -> Trainable:
    """Return the parameters of `model`, and those with `requires_grad`, by component and by decoder layer.

    `tensors` counts the tensors that train. PEFT's frozen original of the projector is not counted twice.
    """
    anatomy = checked_anatomy(model, region)
    components = {component: _Count() for component in COMPONENTS}
    layers: defaultdict[int, _Count] = defaultdict(_Count)
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue
        components[component_of(anatomy, name)].add(parameter)
        layer = layer_of(anatomy, name)
        if layer is not None:
            layers[layer].add(parameter)
    return Trainable(
        method=method,
        region=region,
        components=tuple(count.row(component) for component, count in components.items()),
        layers=tuple(layers[index].row(f"{DECODER_LAYER} {index}") for index in range(anatomy.num_layers)),
    )


def describe(trainable: Trainable) -> str:
    """Return in words and counts what trains and what stays frozen."""
    region = trainable.region
    share = trainable.trainable / max(1, trainable.total)
    parts = [
        f"{row.component}{'s' if row.component == DECODER_LAYER else ''} {row.trainable:,} of {row.total:,}"
        for row in trainable.components
        if row.trainable
    ]
    layers = ", ".join(map(str, region.layers)) or "none"
    return (
        f"{trainable.trainable:,} of {trainable.total:,} parameters train ({share:.1%}, method {trainable.method}):"
        f" {'; '.join(parts) or 'nothing'}. {len(region)} of {region.num_layers} decoder layers: {layers}."
        " All else is frozen."
    )


def adapter_parameters(model: nn.Module, config: LoraConfig) -> int:
    """Return how many parameters the adapters of `config` would have on `model`, modules that it copies included."""
    modules, count = dict(model.named_modules()), 0
    for name in config.target_modules or ():
        outside, inside = modules[name].weight.shape
        count += value_of(config.rank_pattern, name, config.r) * (inside + outside) + config.use_dora * outside
    copied = (modules[name].parameters() for name in config.modules_to_save or ())
    return count + sum(parameter.numel() for parameters in copied for parameter in parameters)


class _Count:
    def __init__(self) -> None:
        self.total = self.trainable = self.tensors = 0

    def add(self, parameter: nn.Parameter) -> None:
        """Count one tensor; 4-bit weights hold two values a byte and say how many they stand for."""
        state = getattr(parameter, "quant_state", None)
        size = state.shape.numel() if state is not None else parameter.numel()
        self.total += size
        if parameter.requires_grad:
            self.trainable += size
            self.tensors += 1

    def row(self, component: str) -> ComponentCount:
        return ComponentCount(component=component, total=self.total, trainable=self.trainable, tensors=self.tensors)

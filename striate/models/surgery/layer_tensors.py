"""Cuts tensors beside the decoder stack that hold one equal block for each layer, such as per-layer embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from striate.models.structure.anatomy import Anatomy, layer_of
from striate.models.surgery.config_edits import cannot_remove


def tensor_slices(model: nn.Module, rebuilt: nn.Module, anatomy: Anatomy, depth: int) -> dict[str, int]:
    """Return the axis along which each tensor beside the stack has one block a layer, for those that must be cut.

    Raises:
        ModelError: a tensor beside the stack would have another shape on reload, and not by its blocks.
    """
    slices = {}
    shapes = {name: tuple(tensor.shape) for name, tensor in rebuilt.named_parameters()}
    for name, tensor in model.named_parameters():
        if layer_of(anatomy, name) is not None or not tensor.is_floating_point():
            continue
        now, then = tuple(tensor.shape), shapes.get(name)
        if now == then:
            continue
        axes = [axis for axis, size in enumerate(now) if then and len(then) == len(now) and then[axis] != size]
        if len(axes) != 1 or then is None or now[axes[0]] * depth != then[axes[0]] * anatomy.num_layers:
            raise cannot_remove(f"{name} has shape {now} and would have {then} on reload")
        slices[name] = axes[0]
    return slices


def cut(model: Any, name: str, axis: int, kept: Sequence[int], num_layers: int) -> None:
    """Keep only the blocks of the layers `kept` in the parameter `name`, in place."""
    parameter = model.get_parameter(name)
    with torch.no_grad():
        blocks = parameter.data.chunk(num_layers, dim=axis)
        parameter.data = torch.cat([blocks[layer] for layer in kept], dim=axis).contiguous()
    module = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = parameter.shape
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape

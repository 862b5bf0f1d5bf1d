"""Iterates over the weight matrices of each decoder layer, LoRA adapters added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from striate.errors import ModelError
from striate.models.structure.anatomy import Anatomy, layer_of, plain_name
from striate.models.trainable.parameter_selection import is_adapter_name

_PACKED = frozenset({"Params4bit", "Int8Params"})


def layer_parameters(core: nn.Module, anatomy: Anatomy) -> list[dict[str, nn.Parameter]]:
    """Return each decoder layer's own parameters by name; adapters on them are left out.

    Raises:
        ModelError: quantised weights.
    """
    parameters: list[dict[str, nn.Parameter]] = [{} for _ in range(anatomy.num_layers)]
    for name, parameter in core.named_parameters(remove_duplicate=False):
        layer = layer_of(anatomy, name)
        if layer is None or is_adapter_name(name):
            continue
        if type(parameter).__name__ in _PACKED or not parameter.is_floating_point() or parameter.itemsize < 2:
            raise _quantized(name)
        parameters[layer][name] = parameter
    return parameters


def layer_matrices(core: nn.Module, anatomy: Anatomy) -> Iterator[tuple[int, str, Tensor]]:
    """Yield the decoder layers' matrices as (layer, parameter name in a plain model, weights), adapters added.

    Matrices are parameters with two dimensions or more, such as projections and stacks of experts; of more than two
    dimensions, all but the last two count matrices.

    Raises:
        ModelError: quantised weights, or an adapter that gives no difference of weights.
    """
    for layer, parameters in enumerate(layer_parameters(core, anatomy)):
        for name, parameter in parameters.items():
            if parameter.ndim >= 2:
                weight = parameter.detach() + _adapters(core, name)
                yield layer, plain_name(name).replace(".base_layer.", "."), weight


def _adapters(core: nn.Module, name: str) -> Tensor | float:
    wrapper, _, rest = name.rpartition(".base_layer.")
    if not wrapper or rest != "weight":
        return 0.0
    module: Any = core.get_submodule(wrapper)
    if module.disable_adapters or module.merged:
        return 0.0
    if not hasattr(module, "lora_A") or any(module.use_dora.values()):
        raise ModelError(
            f"the adapter on {plain_name(wrapper)} ({type(module).__name__}) can't be read as a difference of weights",
            "LoRA adapters without DoRA",
            "merge the adapter first: load_model(path, merge=True)",
        )
    active = [adapter for adapter in module.active_adapters if adapter in module.lora_A]
    with torch.no_grad():
        return sum((module.get_delta_weight(adapter) for adapter in active), start=torch.zeros_like(module.weight))


def _quantized(name: str) -> ModelError:
    return ModelError(
        f"{name} is quantised: its numbers are packed, and have neither gradients nor singular values",
        "weights in bfloat16, float16 or float32",
        "analyse the model as it was before it was quantised",
    )

"""What a decoder layer is made of: its kind, its modules without weights, and where its tensors are kept."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from striate.training.compile.lora_dropout import why_not
from striate.training.compile.merged import Group, SideBySide, take_apart

Kind = tuple[Any, ...]
# A layer's own place in the stack: read only together with a cache, which training does not have.
_PLACES = ("idx", "layer_id", "layer_index", "layer_number")
# Hooks of transformers that note outputs when asked for them, which training does not.
_RECORDERS = "transformers.utils.output_capturing"
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def kind_of(layer: nn.Module) -> Kind:
    """Return what two layers share that can run as one function: modules, settings, shapes, and what trains."""
    modules = tuple((name, type(module), module.training, _settings(module)) for name, module in layer.named_modules())
    tensors = tuple(
        (name, tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad)
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]
    )
    return modules, tensors


def refusal(layer: nn.Module) -> str:
    """Return why `layer` can't be a function of its tensors, or nothing."""
    for name, module in layer.named_modules():
        hooks = [hook for hook in module._forward_hooks.values() if hook.__module__ != _RECORDERS]
        if module is not layer and ("forward" in vars(module) or hooks or module._forward_pre_hooks):
            return f"{name} has a hook"
        if reason := why_not(module):
            return f"{name} is {reason}"
    for name, parameter in layer.named_parameters():
        if type(parameter) is not nn.Parameter or not (parameter.is_floating_point() or parameter.is_complex()):
            return f"{name} is a {type(parameter).__name__} of {parameter.dtype}"
    return ""


def template_of(layer: nn.Module) -> nn.Module:
    """Return a copy of `layer` with its modules and settings, and tensors of no memory in place of its weights."""
    memo: dict[int, Any] = {}
    for parameter in layer.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in layer.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    for module in layer.modules():
        for value in vars(module).values():
            if isinstance(value, PretrainedConfig):
                memo[id(value)] = value
    own = vars(layer).pop("forward", None)
    try:
        template: Any = copy.deepcopy(layer, memo)
    finally:
        if own is not None:
            vars(layer)["forward"] = own
    # Recomputing is decided outside the function; hooks on the layer itself run outside too.
    template.gradient_checkpointing = False
    template._forward_pre_hooks.clear()
    for module in template.modules():
        module._forward_hooks.clear()
    return template


class LayerTensors:
    """The parameters and buffers of one layer, looked up anew at every call: some wrappers swap them."""

    def __init__(self, layer: nn.Module) -> None:
        """Note where each tensor of `layer` is kept."""
        self._modules = list(layer.modules())
        self._slots = [
            (f"{path}.{name}".lstrip("."), owner, name)
            for path, module in layer.named_modules()
            for owner in (module._parameters, module._buffers)
            for name, tensor in owner.items()
            if tensor is not None
        ]
        self._sides: dict[tuple[Group, ...], SideBySide] = {}

    def current(self, groups: tuple[Group, ...] = ()) -> dict[str, torch.Tensor]:
        """Return the tensors by name, the weights of each group as one."""
        tensors = {name: owner[key] for name, owner, key in self._slots}
        if not groups:
            return tensors
        return self._sides.setdefault(groups, SideBySide(groups)).apply(tensors)

    def take_apart(self) -> None:
        """Give every weight memory of its own, where groups had them side by side."""
        tensors = self.current()
        for groups in self._sides:
            take_apart(tensors, groups)
        self._sides = {}

    def flags(self) -> tuple[bool, ...]:
        """Return what may change during training: which parameters train, which modules are in training mode."""
        training = [module.training for module in self._modules]
        return (*training, *(owner[key].requires_grad for _, owner, key in self._slots))


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """Return a module's plain attributes, other than its place in the stack."""
    return tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and isinstance(value, _PLAIN) and not name.endswith(_PLACES)
    )

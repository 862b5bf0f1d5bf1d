"""Adds an adapter into stored weights one module at a time, by PEFT's own layers; nothing else is in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from striate.errors import ModelError
from striate.models.io.adapter_folder import adapter_config, changed_base
from striate.models.io.adapters import place_adapter
from striate.models.io.foreign import reading_model
from striate.models.io.sane_model import is_finite
from striate.models.io.weights.finite_bytes import not_finite
from striate.models.structure.anatomy import plain_name

_WRAPPER = ".token_adapter"
Read = Callable[[str], Tensor]
"""Reads one parameter of the base model by its name."""


def cannot_stream(adapter: Path) -> str:
    """Return why the adapter's modules can't be merged one at a time; empty where they can.

    Raises:
        ModelError: the adapter is none that can be merged at all.
    """
    config = adapter_config(adapter)
    kind = config.get("peft_type")
    if kind in ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT"):
        raise ModelError(
            f"the adapter in {adapter} is {kind}: it adds to the prompt, and there are no weights to merge it into",
            "an adapter that changes weights, such as LoRA",
            "serve it as an adapter, or train a LoRA",
        )
    if start := changed_base(config):
        return f"its LoRA began as {start}, which changes the base weights too"
    return "it adapts single tensors of modules" if config.get("target_parameters") else ""


class AdapterMerge:
    """The parameters that an adapter changes, by their names in the plain model."""

    def __init__(self, model: nn.Module, adapter: Path, tied: Mapping[str, tuple[str, ...]]) -> None:
        """Put the adapter on `model`, which is on the meta device and is changed.

        Args:
            model: the base model.
            adapter: its folder.
            tied: by the name of each tied parameter, all names of that tensor.

        Raises:
            ModelError: it does not fit, or changes one of several tied parameters in a way that no tie holds.
        """
        self._adapter = adapter
        before = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._model = place_adapter(model, adapter)
        self._modules = {name: module for name, module in _tuned(self._model) if _is_known(module)}
        self.unknown = [name for name, module in _tuned(self._model) if not _is_known(module)]
        self._parameters = {
            f"{name}.{own}": name for name, module in self._modules.items() for own, _ in _own_parameters(module)
        }
        self._given = dict(_given(self._model, before))
        self._last: tuple[str, dict[str, Tensor]] = ("", {})
        self.untied = self._untied(tied)

    @property
    def names(self) -> frozenset[str]:
        """The parameters that are changed."""
        return frozenset((*self._parameters, *self._given))

    @property
    def modules(self) -> int:
        """How many modules have an adapter or were trained whole."""
        return len({*self._modules, *(name.rpartition(".")[0] for name in self._given)} - {""})

    def merged(self, name: str, read: Read) -> Tensor:
        """Return the parameter `name` with the adapter in it, in float32 where it was computed.

        Raises:
            ModelError: the adapter's numbers are not finite.
        """
        if name not in self._parameters:
            if not is_finite(self._given[name]):
                raise not_finite(self._adapter, name)
            return self._given[name]
        module = self._parameters[name]
        if self._last[0] == module:
            return self._last[1][name]
        self._last = ("", {})
        merged = self._merge(module, read)
        if len(merged) > 1:
            # Weight and bias of a module mostly follow each other in the file.
            self._last = (module, merged)
        return merged[name]

    def _merge(self, name: str, read: Read) -> dict[str, Tensor]:
        layer: Any = copy.deepcopy(self._modules[name])
        base = layer.get_base_layer()
        for own, parameter in _own_parameters(layer):
            weight = read(f"{name}.{own}") if parameter.is_meta else parameter.detach()
            base.register_parameter(own, nn.Parameter(weight.float(), requires_grad=False))
        layer.float()
        with (
            reading_model(
                f"the adapter in {self._adapter} can't be added to {name}",
                "an adapter of finite numbers that PEFT can merge",
                "take an earlier checkpoint, or train it again",
            ),
            torch.no_grad(),
        ):
            # In place: the weight is a copy already, and PEFT's safe way would take another.
            layer.merge()
            merged = {f"{name}.{own}": parameter.detach() for own, parameter in _own_parameters(layer)}
            if not all(is_finite(tensor) for tensor in merged.values()):
                raise ValueError("the sum is infinite, or no number")
        return merged

    def _untied(self, tied: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
        """Return the changed parameters, and what they were tied to, that need tensors of their own now."""
        groups = {group for name, group in tied.items() if name in self.names}
        for group in groups:
            adapted = [name for name in group if name in self._parameters]
            kinds = {isinstance(self._modules[self._parameters[name]], TrainableTokensLayer) for name in adapted}
            if False in kinds:
                raise ModelError(
                    f"the adapter in {self._adapter} is on {adapted[0]}, and the base model ties"
                    f" {' and '.join(group)}: merged, it would change both",
                    "an adapter that leaves tied weights alone, or a base model without ties",
                    "serve it as an adapter, or give a base model that was saved untied with --base",
                )
        loose = [group for group in groups if not any(name in self._parameters for name in group)]
        return frozenset(name for group in loose if not self._agree(group) for name in group)

    def _agree(self, group: tuple[str, ...]) -> bool:
        """Return whether tied parameters were all trained, and are equal still."""
        given = [self._given[name] for name in group if name in self._given]
        return len(given) == len(group) and all(torch.equal(given[0], other) for other in given[1:])


def _tuned(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """Yield the plain name and the adapter's layer of every module that has one."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer") and ".original_module" not in name:
            yield plain_name(name).removesuffix(_WRAPPER), module


def _is_known(module: Any) -> bool:
    nested = isinstance(module.base_layer, BaseTunerLayer)
    return not (nested or isinstance(module, ParamWrapper | MultiheadAttention))


def _own_parameters(module: Any) -> Iterator[tuple[str, nn.Parameter]]:
    return module.get_base_layer().named_parameters(recurse=False)


def _given(model: PeftModel, base: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield what the adapter's file holds whole: modules that were trained in full, and biases beside adapters."""
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and plain_name(name) in base:
            yield plain_name(name), parameter.detach()
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for own, tensor in module.modules_to_save[module.active_adapters[0]].state_dict().items():
                if not tensor.is_meta:
                    yield f"{plain_name(name)}.{own}", tensor

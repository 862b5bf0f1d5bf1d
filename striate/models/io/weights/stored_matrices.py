"""Reads the decoder layers' weight matrices from a checkpoint on disk one at a time, LoRA adapters merged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from striate.errors import ModelError
from striate.models.io.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of, is_adapter
from striate.models.io.json_files import read_json
from striate.models.io.load import load_weights
from striate.models.io.quiet import quietly
from striate.models.io.weights.safetensors_shards import Stored, read_shards
from striate.models.io.weights.stored_names import StoredNames
from striate.models.structure.anatomy import layer_of, plain_name
from striate.models.structure.meta_model import Blueprint, blueprint
from striate.models.trainable.lora_modules import value_of
from striate.storage.read_files import user_path

_FACTORS = (".lora_A.weight", ".lora_B.weight")


class StoredMatrices:
    """Matrices by parameter name, as `layer_matrices` names them; nothing but the one asked for is in memory.

    Checkpoints whose tensors transformers joins or splits while it loads them are loaded whole, on the CPU.
    """

    def __init__(self, folder: Path) -> None:
        """Read where everything lies in `folder`: a Hugging Face LVLM, in shards or whole, or a LoRA adapter.

        Raises:
            ModelError: no such folder, no safetensors weights, quantised weights, or an adapter other than LoRA.
        """
        self._folder = user_path(folder)
        if not self._folder.is_dir():
            raise ModelError(
                f"no model folder at {folder}", "a folder with config.json and safetensors", "check the path"
            )
        self._adapter = _Adapter(self._folder) if is_adapter(self._folder) else None
        source = Path(base_of(self._folder)) if self._adapter else self._folder
        if not source.is_dir():
            raise ModelError(
                f"the adapter in {folder} has its base model {str(source)!r} elsewhere",
                "a base model in a folder of this machine",
                f"download it, and name that folder in {self._folder / ADAPTER_CONFIG}",
            )
        plan = blueprint(str(source))
        with quietly(True):
            names = StoredNames(plan.model)
        if self._adapter:
            self._adapter.name_as(names)
        self.anatomy = plan.anatomy
        self._shapes, self._places, self._whole = _places(source, plan, names)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every matrix of the decoder layers, by parameter name, in the model's order."""
        return self._shapes

    def read(self, name: str) -> Tensor:
        """Return one matrix on the CPU, in the dtype of the checkpoint, or float32 where an adapter is added."""
        if self._whole is not None:
            weight = self._whole.get_parameter(name).detach()
        else:
            stored_name, stored = self._places[name]
            with safe_open(stored.file, framework="pt") as file:
                weight = file.get_tensor(stored_name)
        return self._adapter.added(name, weight) if self._adapter else weight

    def __iter__(self) -> Iterator[tuple[int, str, Tensor]]:
        for name in self._shapes:
            layer = layer_of(self.anatomy, name)
            if layer is not None:
                yield layer, name, self.read(name)


class _Adapter:
    def __init__(self, folder: Path) -> None:
        self._file = folder / ADAPTER_WEIGHTS
        self._config = read_json(folder / ADAPTER_CONFIG, "the JSON that PEFT writes", "save the adapter again")
        if self._config.get("peft_type") != "LORA" or self._config.get("use_dora"):
            raise ModelError(
                f"{folder} is no plain LoRA adapter: it can't be read as a difference of weights",
                "a LoRA adapter without DoRA",
                "merge it first: load_model(path, merge=True), then save_model",
            )
        if not self._file.is_file():
            raise ModelError(f"{folder} has no {ADAPTER_WEIGHTS}", "a whole adapter folder", "copy it again")
        with safe_open(self._file, framework="pt") as file:
            stored = {plain_name(name): name for name in file.keys()}  # noqa: SIM118
        self._factors = {name: stored[name] for name in stored if name.endswith(_FACTORS)}

    def name_as(self, names: StoredNames) -> None:
        """Call every factor by the parameter that it is added to, whatever checkpoints call that."""
        found = {}
        for name, stored in self._factors.items():
            module, end = name[: -len(_FACTORS[0])], name[-len(_FACTORS[0]) :]
            found[names.target(f"{module}.weight").name.removesuffix(".weight") + end] = stored
        self._factors = found

    def added(self, name: str, weight: Tensor) -> Tensor:
        """Return `W + scale * B A` in float32, or `weight` itself where the adapter has nothing for it."""
        module = name.removesuffix(".weight")
        if module + _FACTORS[0] not in self._factors:
            return weight
        with safe_open(self._file, framework="pt") as file:
            down, up = (file.get_tensor(self._factors[module + factor]).float() for factor in _FACTORS)
        return weight.float() + self._scale(module, down.shape[0]) * (up @ down)

    def _scale(self, module: str, rank: int) -> float:
        """Return alpha / r of one module, or alpha / sqrt(r) of rank-stabilised LoRA."""
        alpha = value_of(self._config.get("alpha_pattern") or {}, module, self._config["lora_alpha"])
        return float(alpha) / (rank**0.5 if self._config.get("use_rslora") else rank)


def _places(
    folder: Path, plan: Blueprint, names: StoredNames
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, Stored]], Any]:
    """Return shapes, and where each matrix is stored; or the loaded model where names do not tell."""
    if getattr(plan.model.config, "quantization_config", None):
        raise ModelError(
            f"{folder} is quantised", "weights in bfloat16, float16 or float32", "use the model before that"
        )
    parameters = plan.model.named_parameters(remove_duplicate=False)
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in parameters
        if tensor.ndim >= 2 and layer_of(plan.anatomy, name) is not None
    }
    with quietly(True):
        stored = read_shards(folder)
        targets = {stored_name: names.target(stored_name) for stored_name in stored}
    places = {target.name: (name, stored[name]) for name, target in targets.items() if not target.reshaped}
    missing = [name for name in shapes if name not in places]
    if not missing:
        return shapes, places, None
    if not any(target.reshaped for target in targets.values()):
        raise ModelError(
            f"{folder} lacks {missing[0]}", "whole weights of the model that config.json describes", "download it again"
        )
    return shapes, {}, load_weights(folder, device=torch.device("cpu"), dtype=torch.float32)

"""Writes the tensors of an imported model as safetensors shards, each checked against the model of its config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from striate.errors import ModelError
from striate.models.convert.legacy.legacy_sources import Tensors
from striate.models.io.weights.safetensors_shards import AGAIN, shard_names, write_index
from striate.models.io.weights.stored_names import StoredNames


class ShardWriter:
    """Writes shards to a folder under temporary names; `finish` names them once their number is known."""

    def __init__(self, folder: Path, model: Any, source: Path, dtype: torch.dtype) -> None:
        """Keep the `model`, on the meta device, that the shards must fill; `source` is for errors."""
        self._folder, self._source, self._dtype = folder, source, dtype
        self._names = StoredNames(model)
        self._parameters = model.state_dict(keep_vars=True)
        self._parts: list[list[str]] = []
        self._found: dict[str, str] = {}
        self._elements = self._bytes = 0

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write one shard.

        Raises:
            ModelError: a tensor that the model has no place for, twice, or of another shape.
            OSError: the disk is full.
        """
        ready: Tensors = {}
        for name, tensor in tensors.items():
            self._check(name, tensor)
            ready[name] = (tensor.to(self._dtype) if tensor.is_floating_point() else tensor).contiguous()
        if not ready:
            return
        try:
            save_file(ready, self._part(len(self._parts)), {"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        self._parts.append(list(ready))
        self._elements += sum(tensor.numel() for tensor in ready.values())
        self._bytes += sum(tensor.numel() * tensor.element_size() for tensor in ready.values())

    def finish(self) -> None:
        """Name the shards and write their index.

        Raises:
            ModelError: the model has parameters that no shard held.
        """
        present = {id(self._parameters[name]) for name in self._found}
        missing = [name for name, parameter in self._parameters.items() if id(parameter) not in present]
        if missing:
            given = f"{self._source} lacks {len(missing)} tensors, for example {self._part_of(missing[0])}"
            raise ModelError(given, "the whole checkpoint, and the vision tower inside it or with --vision", AGAIN)
        files = shard_names(len(self._parts))
        for number, file in enumerate(files):
            self._part(number).rename(self._folder / file)
        if len(files) > 1:
            placed = {name: file for file, names in zip(files, self._parts, strict=True) for name in names}
            write_index(self._folder, placed, self._elements, self._bytes)

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        target = self._names.target(name).name
        if target not in self._parameters:
            given = f"{self._source} holds a tensor that becomes {name}, for which its config has no place"
            raise ModelError(given, "a config, weights and vision tower of one model", AGAIN)
        if target in self._found:
            raise ModelError(f"{self._source} holds {name} twice", "each tensor in one shard", AGAIN)
        wanted = tuple(self._parameters[target].shape)
        if tuple(tensor.shape) != wanted:
            what = self._part_of(target)
            given = f"{what} in {self._source} has shape {tuple(tensor.shape)}, and its config asks for {wanted}"
            raise ModelError(given, "a config, weights and vision tower of one model", AGAIN)
        self._found[target] = name

    def _part_of(self, parameter: str) -> str:
        for mark, title in (("multi_modal_projector", "the projector"), ("vision_tower", "the vision tower")):
            if mark in parameter:
                return f"{title}'s {parameter.partition(mark + '.')[2]}"
        return f"the language model's {parameter}"

    def _part(self, number: int) -> Path:
        return self._folder / f".part-{number:05d}"

"""The tensors of a checkpoint with an adapter merged into them, each made when it is written, shard by shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from striate.models.io.weights.adapter_merge import AdapterMerge
from striate.models.io.weights.safetensors_shards import Stored, Written, read_shards
from striate.models.io.weights.stored_model import stored_targets
from striate.models.io.weights.stored_names import StoredNames
from striate.models.io.weights.tensor_bytes import FLOATS, computed, read_finite
from striate.models.structure.meta_model import Blueprint

AUTO = "auto"
FORMATS: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""The codes on disk of the formats that a checkpoint can be written in."""


def chosen_format(dtype: str, stored: Mapping[str, Stored]) -> str | None:
    """Return the code of the format that floating point tensors are written in; None leaves each as it is.

    `auto` leaves a checkpoint as it is that has 16 bits for most of its weights, and makes any other bfloat16.
    """
    if dtype != AUTO:
        return FORMATS[dtype]
    return None if main_format(stored) in ("BF16", "F16") else "BF16"


def main_format(stored: Mapping[str, Stored]) -> str:
    """Return the code of the format that most floating point numbers of a checkpoint are in."""
    counts: Counter[str] = Counter()
    for tensor in stored.values():
        if tensor.dtype in FLOATS:
            counts[tensor.dtype] += tensor.numel
    return counts.most_common(1)[0][0] if counts else "F32"


class MergedShards:
    """One checkpoint on disk, its tensors on their way to another."""

    def __init__(self, plan: Blueprint, folder: Path, adapter: Path | None, dtype: str) -> None:
        """Look at the checkpoint in `folder`, and put `adapter` on the model of `plan`, which that changes.

        Raises:
            ModelError: weights that are not whole, or an adapter that does not fit.
        """
        self._stored = read_shards(folder)
        self._names = StoredNames(plan.model)
        self._targets = stored_targets(plan.model, plan.anatomy, self._stored, folder)
        self._aliases = aliases(plan.model)
        self._places = {
            alias: stored
            for stored, target in self._targets.items()
            if not target.reshaped
            for alias in self._aliases.get(target.name, (target.name,))
        }
        self._format = chosen_format(dtype, self._stored)
        self.dtype = FLOATS[self._format or main_format(self._stored)]
        self._merge = AdapterMerge(plan.model, adapter, self._aliases) if adapter else None
        self._changed = self._merge.names if self._merge else frozenset()
        self.untied = self._merge.untied if self._merge else frozenset()

    @property
    def modules(self) -> int:
        """How many modules the adapter changes."""
        return self._merge.modules if self._merge else 0

    @property
    def cannot(self) -> str:
        """Why not every changed parameter can be written; empty where each can."""
        if self._merge is not None and self._merge.unknown:
            return f"the adapter on {self._merge.unknown[0]} can't be merged apart from other modules"
        lost = sorted(name for name in self._changed | self.untied if name not in self._places)
        lost += sorted(name for name in self._extra() if self._names.target(name).name != name)
        return f"transformers joins or splits {lost[0]} as it loads it" if lost else ""

    def groups(self) -> list[dict[str, Written]]:
        """Return what is written, by its name on disk, one group a shard of the checkpoint."""
        shards: dict[Path, dict[str, Written]] = {}
        for name, stored in self._stored.items():
            shards.setdefault(stored.file, {})[name] = self._written(name, stored)
        groups = list(shards.values())
        for name in self._extra():
            groups[-1][name] = self._made(name, self._stored[self._places[name]], partial(self._value, name))
        return groups

    def _extra(self) -> list[str]:
        """Return the parameters that were tied to another, and need a tensor of their own."""
        return sorted(self.untied - {target.name for target in self._targets.values()})

    def _written(self, name: str, stored: Stored) -> Written:
        target = self._targets[name]
        loose = target.reshaped or target.name in self.untied
        same = (target.name,) if loose else self._aliases.get(target.name, (target.name,))
        changed = next((alias for alias in same if alias in self._changed and not target.reshaped), None)
        if changed is not None:
            return self._made(changed, stored, partial(self._value, changed))
        if self._format in (None, stored.dtype) or stored.dtype not in FLOATS:
            return stored
        return self._made(name, stored, partial(read_finite, stored, name))

    def _made(self, name: str, stored: Stored, make: Callable[[], Tensor]) -> Written:
        return computed(name, self._format or stored.dtype, stored.shape, make)

    def _value(self, name: str) -> Tensor:
        if self._merge is not None and name in self._changed:
            return self._merge.merged(name, self._read)
        return self._read(name)

    def _read(self, name: str) -> Tensor:
        return read_finite(self._stored[self._places[name]], self._places[name])


def aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return, by the name of each tied parameter of `model`, the names of all that are tied to it, and its own."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in groups.values() if len(group) > 1 for name in group}


def set_dtype(config: object, dtype: torch.dtype) -> None:
    """Note in a model's config, and in those of its parts, that its weights are in `dtype`."""
    setattr(config, "dtype", dtype)  # noqa: B010
    for name in getattr(config, "sub_configs", None) or ():
        if (part := getattr(config, name, None)) is not None:
            set_dtype(part, dtype)

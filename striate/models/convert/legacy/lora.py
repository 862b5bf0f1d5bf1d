"""Merges original LoRA checkpoints, with their non_lora_trainables.bin, into the base tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from striate.errors import ModelError
from striate.models.convert.legacy.legacy_sources import Tensors, load_shard
from striate.models.convert.legacy.names import plain_name
from striate.models.io.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from striate.models.io.json_files import read_json

NON_LORA = "non_lora_trainables.bin"
_UNSUPPORTED = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")


@dataclass(frozen=True)
class Adapter:
    """An original LoRA checkpoint: factor pairs by base tensor, what was trained in full, and the scale of B A."""

    folder: Path
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]
    full: Tensors
    scale: float
    transposed: bool

    def merged(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the base tensor `name` with the adapter in it: W + scale * B A, in float32, then W's dtype.

        Hu et al., LoRA (https://arxiv.org/abs/2106.09685), section 4.1.

        Raises:
            ModelError: the factors don't have the tensor's shape.
        """
        if name not in self.pairs:
            return tensor
        a, b = (factor.float() for factor in self.pairs[name])
        fits = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1]
        shape = (b.shape[0], a.shape[1]) if fits else ()
        if shape != tuple(tensor.shape if not self.transposed else tensor.T.shape):
            raise self.other_model(
                f"{name} is {tuple(tensor.shape)}, its factors are {tuple(b.shape)}, {tuple(a.shape)}"
            )
        change = self.scale * (b @ a)
        return (tensor.float() + (change.T if self.transposed else change)).to(tensor.dtype)

    def other_model(self, reason: str) -> ModelError:
        """Return the error for an adapter that was trained on another base."""
        return ModelError(
            f"the adapter in {self.folder} was trained on another model: {reason}",
            "the base model that the adapter was trained on",
            "name the right one with --base",
        )


def read_adapter(folder: Path) -> Adapter:
    """Return the original LoRA checkpoint in `folder`.

    Raises:
        ModelError: a file is missing or damaged, a factor lacks its partner, or a kind of adapter that can't be merged.
    """
    settings = _settings(folder)
    odd = [key for key in _UNSUPPORTED if settings.get(key)]
    if odd:
        given = f"the adapter in {folder} can't be merged here: {odd[0]}={settings[odd[0]]}"
        raise ModelError(given, "plain LoRA of one rank", "merge it with PEFT and import the result")
    rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    return Adapter(
        folder,
        _pairs(folder),
        {plain_name(name): tensor for name, tensor in load_shard(_file(folder, NON_LORA)).items()},
        alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank),
        bool(settings.get("fan_in_fan_out")),
    )


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / ADAPTER_CONFIG
    settings = read_json(file, "the JSON that PEFT writes, with r and lora_alpha", "copy it again")
    try:
        if int(settings["r"]) > 0 and float(settings["lora_alpha"]):
            return settings
        raise ValueError("r and lora_alpha must be positive")
    except (ValueError, KeyError, TypeError) as error:
        given = f"{file} can't be used: {error}"
        raise ModelError(given, "the JSON that PEFT writes, with r and lora_alpha", "copy it again") from error


def _pairs(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    legacy = folder / "adapter_model.bin"
    stored = load_shard(legacy if legacy.is_file() else _file(folder, ADAPTER_WEIGHTS))
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in stored.items():
        head, mark, rest = plain_name(name).partition(".lora_")
        if not mark:
            raise ModelError(f"{folder} holds {name}, which is no LoRA factor", "lora_A and lora_B", "copy it again")
        factors.setdefault(f"{head}.weight", {})[rest[0]] = tensor
    lone = sorted(name for name, pair in factors.items() if set(pair) != {"A", "B"})
    if lone:
        given = f"the adapter in {folder} is not whole: {lone[0]} has only one of its two factors"
        raise ModelError(given, "lora_A and lora_B of each matrix", "copy it again")
    return {name: (pair["A"], pair["B"]) for name, pair in factors.items()}


def _file(folder: Path, name: str) -> Path:
    if (folder / name).is_file():
        return folder / name
    raise ModelError(
        f"{folder} has no {name}",
        f"an original LoRA checkpoint: {ADAPTER_CONFIG}, {ADAPTER_WEIGHTS} and {NON_LORA}",
        "download it again, whole",
    )

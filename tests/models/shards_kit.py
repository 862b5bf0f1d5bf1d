"""Checkpoints on disk as tests look at them: tensors, bytes, config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from striate.models.io.load import Loaded

Built = tuple[Any, dict[str, Any]]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor on disk by its stored name."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_same_weights(ours: Path, theirs: Path) -> None:
    left, right = tensors_of(ours), tensors_of(theirs)
    assert sorted(left) == sorted(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert tensor.shape == right[name].shape
        assert as_bytes(tensor) == as_bytes(right[name]), name


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def sharded(loaded: Loaded, folder: Path, size: str = "20KB") -> Path:
    loaded.model.save_pretrained(folder, max_shard_size=size)
    loaded.processor.save_pretrained(folder)
    return folder

"""What a PEFT adapter folder says of itself: whether it is one, its config, its base model. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from striate.errors import ModelError
from striate.models.io.json_files import read_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Starts of LoRA that leave the base weights as they are.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")


def is_adapter(path: Path) -> bool:
    """Return whether `path` is a PEFT adapter folder."""
    return (path / ADAPTER_CONFIG).is_file()


def base_of(path: Path) -> str:
    """Return the base model that the adapter in `path` was trained on: a folder or a hub id.

    A relative `base_model_name_or_path` is looked for from the adapter folder, then from the working folder.

    Raises:
        ModelError: `adapter_config.json` can't be read or names no base model.
    """
    name = adapter_config(path).get("base_model_name_or_path")
    if not (isinstance(name, str) and name):
        raise ModelError(
            f"{path / ADAPTER_CONFIG} names no base model",
            "a folder or hub id as base_model_name_or_path",
            "add the base model's path to that file",
        )
    beside = path / name
    return str(beside.resolve()) if beside.is_dir() else str(name)


def base_revision_of(path: Path) -> str | None:
    """Return the branch, tag or commit of the base model that the adapter in `path` was trained on, if it names one."""
    revision = adapter_config(path).get("revision")
    return None if revision is None else str(revision)


def adapter_config(path: Path) -> dict[str, Any]:
    """Return the content of the folder's `adapter_config.json`.

    Raises:
        ModelError: it can't be read.
    """
    return read_json(path / ADAPTER_CONFIG, "the JSON that PEFT writes", "save the adapter again")


def changed_base(config: Mapping[str, Any]) -> str:
    """Return how a LoRA of this config began, such as `pissa`, where that changed the base weights too; else nothing.

    Only PEFT's own loading, which changes them again, gives the model that was trained.
    """
    start = config.get("init_lora_weights")
    return start if isinstance(start, str) and start not in _PLAIN_STARTS else ""

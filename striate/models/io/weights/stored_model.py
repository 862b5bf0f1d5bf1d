"""A checkpoint on disk as a whole: each tensor with the parameter that it becomes, its config and its small files."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from striate.errors import ModelError
from striate.models.io.model_folder import model_file
from striate.models.io.weights.safetensors_shards import AGAIN, Stored
from striate.models.io.weights.stored_names import StoredNames, Target
from striate.models.structure.anatomy import Anatomy, layer_of

WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".h5")
"""How names of files end that hold weights, or say where they are."""


def check_unquantized(config: Any, folder: Path, next_step: str) -> None:
    """Raise for a quantised checkpoint: its tensors are packed in ways that differ by method.

    Raises:
        ModelError: it is one; the error advises `next_step`.
    """
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{folder} is quantised", "weights in bfloat16, float16 or float32", next_step)


def stored_targets(model: Any, anatomy: Anatomy, stored: Mapping[str, Stored], folder: Path) -> dict[str, Target]:
    """Return the parameter of each stored tensor, once every parameter of `model` has a tensor of its shape.

    Raises:
        ModelError: tensors are missing, of another shape, or of layers beyond the config.
    """
    names = StoredNames(model)
    parameters = model.state_dict(keep_vars=True)
    targets = {name: names.target(name) for name in stored}
    target_names = {target.name for target in targets.values()}
    # Tied parameters are one tensor: any of their names on disk is enough.
    present = {id(parameters[name]) for name in target_names & set(parameters)}
    whole = {target.name for target in targets.values() if target.reshaped}
    missing = [name for name in parameters if id(parameters[name]) not in present and not _joined(name, whole)]
    extra = [name for name in sorted(target_names - set(parameters)) if name.startswith(f"{anatomy.layers_name}.")]
    extra = [name for name in extra if (layer_of(anatomy, name) or 0) >= anatomy.num_layers]
    if missing or extra:
        what = f"lacks {len(missing)} tensors" if missing else f"holds {len(extra)} tensors of layers beyond its config"
        given = f"{folder} {what} (for example {(missing or extra)[0]}): config.json and weights disagree"
        raise ModelError(given, f"weights of {anatomy.num_layers} decoder layers, as config.json says", AGAIN)
    for name, target in targets.items():
        wanted = parameters.get(target.name)
        if wanted is not None and not target.reshaped and tuple(wanted.shape) != stored[name].shape:
            given = f"{name} in {folder} has shape {stored[name].shape}, and config.json asks for {tuple(wanted.shape)}"
            raise ModelError(given, "a config and weights of one model", AGAIN)
    return targets


def _joined(name: str, whole: set[str]) -> bool:
    """Return whether a conversion that starts from stored tensors may make the parameter `name` too."""
    parent = name.rpartition(".")[0].rpartition(".")[0]
    return any(other.startswith(f"{parent}.") for other in whole)


def write_config(model: Any, folder: Path) -> None:
    """Write the config of `model`, with the name of its class, to `folder`."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def copy_small_files(source: Path, target: Path, left_out: Collection[str]) -> None:
    """Copy what lies beside the weights in `source`, such as its processor's files, but hidden ones and `left_out`."""
    for file in sorted(source.iterdir()):
        hidden = file.name.startswith(".")
        if file.is_file() and file.name not in left_out and not (hidden or file.name.endswith(WEIGHTS)):
            shutil.copyfile(model_file(source, file.name, "the model's file"), target / file.name)

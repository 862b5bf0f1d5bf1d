"""Checkpoints to go on from: whole or ignored, and only of the same run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from striate.errors import TrainingError
from striate.storage.atomic import write_text
from striate.training.distributed.full_parameters import copy_into, gathered
from striate.training.distributed.ranks import Ranks

COMPLETE = "complete.json"
WEIGHTS = "trainable.safetensors"


def mark_complete(folder: Path, run: Mapping[str, Any]) -> None:
    """Write the file that makes the checkpoint in `folder` count: the last one, so a broken checkpoint has none."""
    write_text(folder / COMPLETE, json.dumps(dict(run), indent=2) + "\n")


def find_checkpoint(work_dir: Path, run: Mapping[str, Any]) -> Path | None:
    """Return the newest whole checkpoint in `work_dir`, or None; folders of interrupted saves are removed.

    Raises:
        TrainingError: the checkpoint is of a run with another region, data, seed, model or settings.
    """
    found: dict[int, Path] = {}
    for folder in work_dir.glob("checkpoint-*"):
        number = folder.name.partition("-")[2]
        if number.isdigit() and (folder / COMPLETE).is_file():
            found[int(number)] = folder
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if not found:
        return None
    newest = found[max(found)]
    _check_same(json.loads((newest / COMPLETE).read_text(encoding="utf-8")), run, newest)
    return newest


def remove_checkpoints(work_dir: Path) -> None:
    """Remove all checkpoints in `work_dir`, and the folder itself if nothing else is in it."""
    for folder in work_dir.glob("checkpoint-*"):
        shutil.rmtree(folder, ignore_errors=True)
    if work_dir.is_dir() and not any(work_dir.iterdir()):
        work_dir.rmdir()


def step_of(checkpoint: Path | None) -> int:
    """Return the number of steps done at `checkpoint`; 0 for None."""
    return int(checkpoint.name.partition("-")[2]) if checkpoint else 0


def save_trainable(model: nn.Module, folder: Path, names: Container[str]) -> None:
    """Write the parameters of `model` that train, `names`, to `folder`; some of them may be closed for the moment."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if name in names:
            with gathered(parameter) as tensor:
                tensors[name] = tensor.detach().contiguous()
    if Ranks.launched().is_main:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(folder / WEIGHTS))


def load_trainable(model: nn.Module, folder: Path) -> None:
    """Copy the parameters that `save_trainable` wrote back into `model`.

    Raises:
        TrainingError: the stored tensors are not exactly those that train.
    """
    stored = load_file(str(folder / WEIGHTS))
    wanted = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    if stored.keys() != wanted.keys():
        different = sorted(stored.keys() ^ wanted.keys())
        raise TrainingError(
            f"{folder} does not hold the tensors that train: {len(different)} differ, such as {different[0]}",
            "a checkpoint of this model, region and method",
            f"remove {folder.parent} to start again",
        )
    for name, tensor in wanted.items():
        copy_into(tensor, stored[name])


def _check_same(stored: Mapping[str, Any], run: Mapping[str, Any], folder: Path) -> None:
    """Raise if the checkpoint was made by a different run, naming what changed."""
    changed = [key for key in run if stored.get(key) != json.loads(json.dumps(run[key]))]
    if changed:
        raise TrainingError(
            f"{folder} is of another training run: {', '.join(changed)} changed",
            "going on with exactly the settings, region, data and seed that training began with",
            f"restore them, or remove {folder.parent} to start again",
        )

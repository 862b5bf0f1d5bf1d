"""Encoded samples on disk, without their pixels: a run that finds them there reads no picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from striate.data.encoding import Encoded
from striate.errors import ArtifactError
from striate.storage.atomic import new_folder

TENSORS, SHAPES = "tokens.safetensors", "tokens.json"
_PARTS = ("tokens", "pictures")


def save_items(folder: Path, items: Sequence[Encoded]) -> None:
    """Write the samples to `folder`: all values of one name in a row, and the form that each sample has of it."""
    tensors: dict[str, torch.Tensor] = {}
    shapes: dict[str, list[list[int] | None]] = {}
    for part in _PARTS:
        for name in dict.fromkeys(name for item in items for name in getattr(item, part)):
            found = [getattr(item, part).get(name) for item in items]
            tensors[f"{part} {name}"] = torch.cat([one.flatten() for one in found if one is not None])
            shapes[f"{part} {name}"] = [None if one is None else list(one.shape) for one in found]
    save_file(tensors, folder / TENSORS)
    (folder / SHAPES).write_text(json.dumps(shapes), encoding="utf-8")


def load_items(folder: Path) -> list[Encoded]:
    """Return the samples that `save_items` wrote.

    Raises:
        ArtifactError: they are missing or damaged.
    """
    try:
        tensors = load_file(folder / TENSORS)
        shapes: dict[str, list[list[int] | None]] = json.loads((folder / SHAPES).read_text(encoding="utf-8"))
        items = [Encoded({}, {}) for _ in next(iter(shapes.values()))]
        for key, forms in shapes.items():
            part, _, name = key.partition(" ")
            pieces = iter(tensors[key].split([math.prod(form) for form in forms if form is not None]))
            for item, form in zip(items, forms, strict=True):
                if form is not None:
                    getattr(item, part)[name] = next(pieces).view(form)
    except (OSError, ValueError, KeyError, RuntimeError, StopIteration, SafetensorError) as error:
        raise ArtifactError(
            f"{folder} holds no whole samples: {error}",
            "a folder that machine.cache_vision=disk wrote",
            "remove it: it is made anew",
        ) from error
    return items


def items_once(folder: Path, work: Callable[[], Sequence[Encoded]]) -> None:
    """Let `work` make the samples of `folder` unless they are there; the folder appears whole or not at all.

    Raises:
        ArtifactError: they can't be written, or the disk is full.
    """
    if folder.exists():
        return
    try:
        with new_folder(folder) as place:
            save_items(place, work())
    except ArtifactError:
        # Another training of the same sweep may have written the same meanwhile.
        if not folder.exists():
            raise

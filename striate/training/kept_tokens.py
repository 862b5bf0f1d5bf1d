"""Encoded samples on disk, without their pixels: a run that finds them there reads no picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from striate.data.encoding import Encoded
from striate.errors import ArtifactError

TENSORS, SIZES = "tokens.safetensors", "tokens.json"
# Tensors of tokens grow along their second dimension, those of pictures along their first.
_PARTS = {"tokens": 1, "pictures": 0}


def save_items(folder: Path, items: Sequence[Encoded]) -> None:
    """Write the samples to `folder`: all tensors of one name as one, and the size that each sample has of it."""
    tensors: dict[str, torch.Tensor] = {}
    sizes: dict[str, list[int | None]] = {}
    for part, axis in _PARTS.items():
        for name in dict.fromkeys(name for item in items for name in getattr(item, part)):
            found = [getattr(item, part).get(name) for item in items]
            tensors[f"{part} {name}"] = torch.cat([one for one in found if one is not None], dim=axis).contiguous()
            sizes[f"{part} {name}"] = [None if one is None else one.shape[axis] for one in found]
    save_file(tensors, folder / TENSORS)
    (folder / SIZES).write_text(json.dumps(sizes), encoding="utf-8")


def load_items(folder: Path) -> list[Encoded]:
    """Return the samples that `save_items` wrote.

    Raises:
        ArtifactError: they are missing or damaged.
    """
    try:
        tensors = load_file(folder / TENSORS)
        sizes: dict[str, list[int | None]] = json.loads((folder / SIZES).read_text(encoding="utf-8"))
        items = [Encoded({}, {}) for _ in next(iter(sizes.values()))]
        for key, counts in sizes.items():
            part, _, name = key.partition(" ")
            pieces = iter(tensors[key].split([count for count in counts if count is not None], dim=_PARTS[part]))
            for item, count in zip(items, counts, strict=True):
                if count is not None:
                    getattr(item, part)[name] = next(pieces)
    except (OSError, ValueError, KeyError, RuntimeError, StopIteration, SafetensorError) as error:
        raise ArtifactError(
            f"{folder} holds no whole samples: {error}",
            "a folder that machine.cache_hidden=disk wrote",
            "remove it: it is made anew",
        ) from error
    return items

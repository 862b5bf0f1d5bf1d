"""Reads original weights one shard at a time: safetensors, or .bin files without running anything stored in them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file

from striate.config import looks_like_hub_id
from striate.errors import ModelError, first_line
from striate.models.io.hub_download import fetch_files
from striate.models.io.hub_reach import copy_if_silent
from striate.models.io.model_folder import check_source, model_file, weight_map
from striate.models.io.quiet import quietly
from striate.models.io.weights.safetensors_shards import AGAIN, INDEX, WHOLE, read_shards
from striate.progress import fetching
from striate.storage.read_files import user_path

BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ALLOWED = "model.safetensors or pytorch_model.bin, or shards with their index"
Tensors = dict[str, torch.Tensor]


def folder_of(path: str | Path, what: str, revision: str | None = None) -> Path:
    """Return the folder `path`, or that of the hub id `path`, which is fetched at `revision`.

    Raises:
        ModelError: neither, or a folder that may not be loaded; `what` names the thing for people.
    """
    folder = user_path(path)
    folder = folder if folder.is_dir() else _fetched(str(path), what, revision)
    check_source(str(folder))
    return folder


def _fetched(text: str, what: str, revision: str | None) -> Path:
    if not looks_like_hub_id(text):
        raise ModelError(f"no {what} at {text!r}: there is no such folder", "a folder or a hub id", "check the path")
    copy = copy_if_silent(text, revision)
    if copy is not None:
        return copy
    try:
        with quietly(True):
            fetch_files(text, revision, fetching())
            return Path(snapshot_download(text, revision=revision))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no {what} at {text!r}: {first_line(error)}",
            "a folder or a hub id",
            "check the path; for a hub id, check the network and `hf auth login`",
        ) from error


def shard_files(folder: Path) -> list[Path]:
    """Return the weight files of `folder`; safetensors are preferred, and their headers checked.

    Raises:
        ModelError: no weights, or not all of them.
    """
    if (folder / INDEX).is_file() or (folder / WHOLE).is_file():
        return list(dict.fromkeys(tensor.file for tensor in read_shards(folder).values()))
    index = folder / BIN_INDEX
    if not index.is_file():
        if (folder / BIN).is_file():
            return [folder / BIN]
        raise ModelError(f"{folder} has no weights", ALLOWED, AGAIN)
    names = sorted(set(weight_map(index).values()))
    missing = [name for name in names if not model_file(folder, name, f"{BIN_INDEX} places tensors in").is_file()]
    if missing:
        given = f"{folder} lacks {len(missing)} of {len(names)} shards, for example {missing[0]}"
        raise ModelError(given, f"every shard that {BIN_INDEX} names", AGAIN)
    return [folder / name for name in names]


def load_shard(file: Path) -> Tensors:
    """Return the tensors of one weight file.

    Raises:
        ModelError: damaged, or a .bin file that holds anything but tensors.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{file} was not read: it is damaged, or holds more than tensors ({first_line(error)})",
            "a file of plain tensors",
            "use the published file; nothing in it was run",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"{file} is damaged: {first_line(error)}", "a whole weight file", AGAIN) from error
    if isinstance(stored, dict) and all(isinstance(tensor, torch.Tensor) for tensor in stored.values()):
        return stored
    raise ModelError(f"{file} holds no table of tensors", "tensors by name", "use the published file")


def each_tensor(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor in the weight files of `folder`, one file in memory at a time."""
    for file in shard_files(folder):
        yield from load_shard(file).items()

"""What a model's folder, or hub id, may ask for: no code of its own, no files of elsewhere, no impossible depth.

Code that config.json names is not run either: there transformers takes its own class, or, told so, refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.utils import cached_file

from striate.errors import ModelError
from striate.models.io.json_files import object_of
from striate.printable import shown
from striate.storage.inside import inside

CONFIG = "config.json"
# Files in which transformers looks for the names of classes to import from the folder, beside the model's config.
CODE_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "adapter_config.json",
)
# The most that a setting of these names may count: what is beyond builds for ever, or takes all memory.
_MOST = (
    (re.compile(r"(?:^|_)(?:layers?|blocks|depths?|stages)$"), 1024),
    (re.compile(r"(?:^|_)(?:experts|heads)$"), 16_384),
    (re.compile(r"^(?:height|width|(?:image_|crop_)?size)$"), 16_384),
    (re.compile(r"^r$"), 65_536),
    (re.compile(r"image_(?:seq_len(?:gth)?|tokens)$"), 1_000_000),
)
# Names of kernels of the hub; and what makes PEFT import a module that an adapter names.
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation")
_IMPORTS = "megatron_config"


def check_source(source: str, revision: str | None = None) -> None:
    """Raise for a model that could not be loaded without running its code, reading elsewhere, or building for ever.

    Raises:
        ModelError: it names code of its own, a kernel of the hub, weights elsewhere, or thousands of layers.
    """
    folder = Path(source)
    if folder.is_dir():
        _check_files(folder)
    for name in (CONFIG, *CODE_FILES):
        file = _file(source, name, revision)
        for key, value in _walk(object_of(file) if file else {}):
            _check_setting(f"{source}: {name}", key, value)


def weight_map(index: Path) -> dict[str, str]:
    """Return which file of the folder an index of weights places each tensor in.

    Raises:
        ModelError: it can't be read, or is no such index.
    """
    allowed, again = 'JSON with "weight_map"', "download or save the model again"
    placed = object_of(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
        raise ModelError(f"{index} is damaged", allowed, again)
    return placed


def model_file(folder: Path, name: str, what: str) -> Path:
    """Return the path of a file of the model in `folder` that is to be copied; `what` is the start of errors.

    In the cache of the hub, files are links to its folder of blobs.

    Raises:
        ModelError: it lies elsewhere.
    """
    blobs = [folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else []
    return inside(folder, name, what=what, kind="model folder", also=blobs, error_class=ModelError)


def _check_files(folder: Path) -> None:
    for file in sorted(_entries(folder)):
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise ModelError(f"{file} is neither a file nor a folder", "a folder of ordinary files", "remove it")
        if file.name.endswith(".index.json"):
            placed = object_of(file).get("weight_map")
            for shard in set(map(str, placed.values() if isinstance(placed, dict) else ())):
                path = PurePosixPath(shard)
                if path.is_absolute() or ".." in path.parts:
                    model_file(folder, shard, f"{file.name} places tensors in")


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise ModelError(
            f"can't read {folder}: {error.strerror}", "a folder that you may enter", "check its permissions"
        ) from error


def _check_setting(place: str, key: str, value: Any) -> None:
    runs = key == "auto_map" and not place.endswith(f": {CONFIG}")
    if runs or (key == _IMPORTS and value) or (key in _IMPLEMENTATIONS and "/" in str(value)):
        raise ModelError(
            f"{place} asks for code of its own under {key!r}, which was not run",
            "classes that transformers itself has: striate runs no code that comes with a model",
            f"if transformers knows the model without it, remove {key!r} in a copy of the folder; else choose another",
        )
    most = next((most for pattern, most in _MOST if pattern.search(key)), None)
    for count in value if isinstance(value, list) else [value]:
        if most is not None and isinstance(count, int | float) and count > most:
            raise ModelError(f"{place} has {key} {shown(count)}", f"at most {most}", "mend the file, or get it again")


def _file(source: str, name: str, revision: str | None) -> Path | None:
    """Return the file called `name` of a folder or hub id; None where there is none, or the hub can't be asked."""
    if Path(source).is_dir():
        return file if (file := Path(source) / name).is_file() else None
    found = cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of a JSON value with what it holds, at any depth."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield from part.items()
            left += part.values()
        elif isinstance(part, list):
            left += part

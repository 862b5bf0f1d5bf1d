"""Looks at a model's weight files without loading them: whether there are some, and whether each is whole."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from striate.errors import ModelError
from striate.models.io.adapter_folder import ADAPTER_WEIGHTS, base_of, is_adapter
from striate.models.io.foreign import reading_model
from striate.models.io.json_files import read_json
from striate.models.io.model_folder import CONFIG
from striate.models.io.weights.safetensors_shards import is_index, weights_of

DESCRIBED = ("whole weights of the model that config.json describes", "download or save the model again")
_PATTERNS = ("*.safetensors*", "pytorch_model*.bin*")


def check_weights_there(folder: Path) -> None:
    """Return if the folder of a model holds weights.

    Raises:
        ModelError: it holds none.
    """
    if folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in _PATTERNS):
        if not (folder / CONFIG).is_file():
            raise ModelError(
                f"{folder} holds no model: neither config.json nor weights",
                "a folder with config.json and weights",
                "give the folder that `save_pretrained` wrote",
            )
        raise ModelError(
            f"{folder} has a config.json, but no weights",
            "model.safetensors, or its shards with their index",
            "download or save the model again",
        )


def check_weights_whole(folder: Path) -> None:
    """Return if the weights of a model or adapter, and of an adapter's base that is a folder, are whole files.

    Only the headers of safetensors files are read, which say how long each file must be.

    Raises:
        ModelError: there are none, one that the index names is missing, or one is cut short or no such file.
    """
    if is_adapter(folder):
        base = Path(base_of(folder))
        if base.is_dir():
            check_weights_whole(base)
        files = [folder / ADAPTER_WEIGHTS] if (folder / ADAPTER_WEIGHTS).exists() else []
    else:
        check_weights_there(folder)
        files = sorted({*folder.glob("*.safetensors"), *_indexed(folder)})
    for file in files:
        with reading_model(f"the weights in {folder} can't be loaded", *DESCRIBED), safe_open(file, "np") as opened:
            opened.keys()


def _indexed(folder: Path) -> list[Path]:
    """Return the shards that the folder's index names, if it has one."""
    if not (any(folder.glob("*.safetensors*")) and is_index(index := weights_of(folder))):
        return []
    names = read_json(index, "the JSON that save_pretrained writes", DESCRIBED[1]).get("weight_map")
    shards = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
    missing = [name for name in shards if not _lies_in(folder, name)]
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} shards of its weights, such as {missing[0]!r}", *DESCRIBED)
    return [folder / name for name in shards]


def _lies_in(folder: Path, name: str) -> bool:
    return ".." not in Path(name).parts and not Path(name).is_absolute() and (folder / name).is_file()

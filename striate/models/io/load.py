"""Loads LVLMs: Hugging Face folders, hub ids and PEFT adapter folders, whole or with a clear error."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import cached_file

from striate.config import looks_like_hub_id
from striate.errors import ModelError, first_line
from striate.models.convert.legacy.layouts import is_original, original_error
from striate.models.io.adapter_folder import ADAPTER_CONFIG, base_of, base_revision_of, is_adapter
from striate.models.io.adapters import add_adapter, merged
from striate.models.io.devices import resolve_device, resolve_dtype
from striate.models.io.foreign import reading_model
from striate.models.io.hub_reach import copy_if_silent
from striate.models.io.json_files import object_of
from striate.models.io.model_folder import check_source
from striate.models.io.quiet import quietly
from striate.models.io.sane_config import check_config
from striate.models.io.sane_model import check_finite, check_image_token, check_size, check_special_tokens
from striate.models.io.weight_files import DESCRIBED, check_weights_there
from striate.models.structure.anatomy import find_anatomy
from striate.models.structure.vision_modules import text_only
from striate.models.visual_token_skipping.rule import load_rule
from striate.storage.read_files import user_path

NO_MODEL = (
    "a folder with config.json or adapter_config.json, or a hub id such as llava-hf/llava-1.5-7b-hf",
    "check the path; for a hub id, check the network and `hf auth login`",
)
A_CONFIG = ("a model type of transformers, with the values that it takes", "check the file, or upgrade transformers")


@dataclass
class Loaded:
    """An LVLM in eval mode and the processor that makes its inputs."""

    model: Any
    processor: Any


def load_model(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    merge: bool = False,
    quiet: bool = True,
) -> Loaded:
    """Return the LVLM at `path` in eval mode, with its processor.

    A folder that holds a rule, such as visual_compute.json, gives a model that follows it.

    Args:
        path: a Hugging Face LVLM folder, a hub id, or a PEFT adapter folder (its base is found from its config).
        device: `auto` (CUDA where there is some, else CPU), `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `auto` (float32 on CPU, bfloat16 elsewhere), `float32`, `bfloat16` or `float16`.
        revision: branch, tag or commit of a hub id.
        merge: add an adapter into the weights, which gives a plain transformers model; without effect on others.
        quiet: show no progress bars and warnings of transformers.

    Raises:
        ModelError: no such path, a text-only model, missing or damaged weights, base model or processor.
    """
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    with quietly(quiet):
        source = source_of(str(path), revision)
        model = _read_model(source, place, kind, revision, merge)
        load_rule(model, Path(source))
        processor = _read_processor(source, revision)
        check_image_token(model, processor, source)
        check_special_tokens(model, processor, source)
        return Loaded(model, processor)


def load_weights(
    path: str | Path, *, device: torch.device, dtype: torch.dtype, revision: str | None = None, **options: Any
) -> Any:
    """Return the model at `path` in eval mode, without a processor; `options` go to `from_pretrained`.

    Raises:
        ModelError: as `load_model`, but a processor is not asked for.
    """
    with quietly(True):
        source = source_of(str(path), revision)
        model = _read_model(source, device, dtype, revision, False, **options)
        load_rule(model, Path(source))
        return model


def load_processor(path: str | Path, *, revision: str | None = None) -> Any:
    """Return the processor of the model or adapter at `path`; it has `image_processor` and `tokenizer`.

    Raises:
        ModelError: no such path, or no processor there.
    """
    with quietly(True):
        return _read_processor(source_of(str(path), revision), revision)


def read_config(path: str | Path, revision: str | None = None) -> Any:
    """Return the config of the LVLM at `path`; weights are not read.

    Raises:
        ModelError: no such model, or a text-only one.
    """
    with quietly(True):
        return _lvlm_config(source_of(str(path), revision), revision)


def source_of(path: str, revision: str | None) -> str:
    """Return the folder or hub id to read from; hub ids of adapters are fetched and become a folder.

    Raises:
        ModelError: neither, or one that may not be loaded.
    """
    folder = user_path(path)
    if folder.is_dir():
        _refuse_original(folder / "config.json", str(folder))
        check_source(str(folder))
        return str(folder)
    if folder.exists():
        raise ModelError(f"{path} is a file", "a model folder or a hub id", "give the folder that the file is in")
    if not looks_like_hub_id(path):
        raise _no_such(path, "there is no such folder")
    copy = copy_if_silent(path, revision)
    if copy is not None:
        return source_of(str(copy), None)
    try:
        plain, adapter = (
            cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
            for name in ("config.json", ADAPTER_CONFIG)
        )
        if plain:
            _refuse_original(Path(plain), path)
        check_source(path, revision)
        return snapshot_download(path, revision=revision) if adapter else path
    except (OSError, ValueError) as error:
        raise _no_such(path, first_line(error)) from error


def _refuse_original(file: Path, source: str) -> None:
    """Raise for a config in the layout of its authors: transformers would misread it, or not read it at all."""
    # Missing and damaged configs have errors of their own where they are read.
    config = object_of(file)
    if is_original(config):
        raise original_error(source, config)


def _no_such(path: str, reason: str) -> ModelError:
    return ModelError(
        f"no model at {path!r}: {reason}",
        *NO_MODEL,
    )


def _read_model(
    source: str, device: torch.device, dtype: torch.dtype, revision: str | None, merge: bool, **options: Any
) -> Any:
    model = _read_unchecked(source, device, dtype, revision, merge, **options)
    check_finite(model, source)
    return model


def _read_unchecked(
    source: str, device: torch.device, dtype: torch.dtype, revision: str | None, merge: bool, **options: Any
) -> Any:
    folder = Path(source)
    if not is_adapter(folder):
        return _read_plain(source, dtype, revision, **options).to(device).eval()
    base, pinned = base_of(folder), base_revision_of(folder)
    try:
        plain = _read_plain(source_of(base, pinned), dtype, pinned, **options)
    except ModelError as error:
        given = f"the adapter in {source} needs its base model, which can't be used: {error.given}"
        hint = f"fix base_model_name_or_path in {folder / ADAPTER_CONFIG}"
        raise ModelError(given, error.allowed, hint) from error
    wrapped = add_adapter(plain.to(device), folder)
    return merged(wrapped) if merge else wrapped


def _read_plain(source: str, dtype: torch.dtype, revision: str | None, **options: Any) -> Any:
    config = _lvlm_config(source, revision)
    check_weights_there(Path(source))
    with reading_model(f"the weights in {source} can't be loaded", *DESCRIBED):
        check_size(config, Path(source))
        model, info = AutoModelForImageTextToText.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            revision=revision,
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
        _unpack(model)
        _check_complete(source, model, info)
    return model


def _unpack(model: Any) -> None:
    """Unpack matrices that compressed-tensors would unpack at the first pass, whose time is then that of an answer."""
    if hasattr(model, "ct_decompress_hook"):
        model.hf_quantizer.compressor.decompress_model(model)


def _lvlm_config(source: str, revision: str | None) -> Any:
    config = _read_config(source, revision)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise _not_lvlm(source, config)
    check_config(config, source)
    return config


def _read_config(source: str, revision: str | None) -> Any:
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise _no_config(source)
    if not Path(source).is_dir():
        with reading_model(f"no model at {source!r}", *NO_MODEL):
            return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    with reading_model(f"{source}/config.json can't be used", *A_CONFIG):
        return AutoConfig.from_pretrained(source, trust_remote_code=False)


def _no_config(folder: str) -> ModelError:
    if is_adapter(Path(folder)):
        return ModelError(
            f"{folder} is an adapter without its base model",
            "a whole model: a folder with config.json, or a hub id",
            f"merge both with `striate merge {shlex.quote(folder)} --out DIR`",
        )
    return ModelError(
        f"{folder} has no config.json",
        "a folder with config.json or adapter_config.json",
        "give the folder that `save_pretrained` wrote",
    )


def _not_lvlm(source: str, config: Any) -> ModelError:
    name = f"{source} ({(config.architectures or [config.model_type])[0]})"
    if not hasattr(config, "vision_config"):
        return text_only(name)
    return ModelError(
        f"{name} is not a vision-language model that answers in text",
        "a model of AutoModelForImageTextToText",
        "choose another model; see `striate ls families`",
    )


def _check_complete(source: str, model: Any, info: Any) -> None:
    """Raise when transformers made up tensors, or left layers of the file aside: both are silent there."""
    anatomy = find_anatomy(model)
    missing = sorted(info["missing_keys"])
    unread = sorted(name for name in info["unexpected_keys"] if name.startswith(f"{anatomy.layers_name}."))
    if missing or unread:
        what = (
            f"lacks {len(missing)} tensors" if missing else f"holds {len(unread)} tensors of layers beyond its config"
        )
        raise ModelError(
            f"{source} {what} (for example {(missing or unread)[0]}): config.json and weights disagree",
            f"weights of {anatomy.num_layers} decoder layers, as config.json says",
            "download or save the model again",
        )


def _read_processor(source: str, revision: str | None) -> Any:
    """Return the processor of `source`, or of an adapter's base when the adapter folder has none."""
    reason = "only a tokenizer was found"
    for place, commit in _processor_places(source, revision):
        try:
            processor = AutoProcessor.from_pretrained(place, revision=commit, trust_remote_code=False)
        except Exception as error:  # Its files can hold anything, and classes of theirs raise as many kinds.
            reason = first_line(error)
            continue
        if hasattr(processor, "image_processor") and hasattr(processor, "tokenizer"):
            return processor
    raise ModelError(
        f"{source} has no processor: {reason}",
        "processor_config.json or preprocessor_config.json, and the tokenizer's files, beside the weights",
        "copy them from the model that this one was made from",
    )


def _processor_places(source: str, revision: str | None) -> Iterator[tuple[str, str | None]]:
    """Yield where a processor may be, with the revision; an adapter's base is looked for only when it is asked for."""
    yield source, revision
    folder = Path(source)
    if is_adapter(folder):
        pinned = base_revision_of(folder)
        yield source_of(base_of(folder), pinned), pinned

"""Loads PEFT adapter folders, and proves that every stored tensor reaches the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from striate.errors import ModelError
from striate.models.io.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config
from striate.models.io.foreign import reading_model
from striate.models.io.sane_model import is_finite
from striate.models.io.weights.adapter_names import as_peft_reads
from striate.models.io.weights.finite_bytes import not_finite


def add_adapter(model: Any, path: Path) -> PeftModel:
    """Return `model` with the adapter of `path` on it, in eval mode; the trained projector is restored with it.

    Raises:
        ModelError: no weights, values that are no numbers, or not every tensor of the adapter has its place in `model`.
    """
    stored = _stored(path)
    _check_modules(stored, path)
    _check_finite(stored, path)
    dtype = next(model.parameters()).dtype
    with _fitting(path):
        # Adapters in the model's own type: outside autocast a float32 projector can't follow a bfloat16 encoder.
        wrapped = PeftModel.from_pretrained(model, str(path), autocast_adapter_dtype=False)
    _check_match(as_peft_reads(wrapped, stored), get_peft_model_state_dict(wrapped), path)
    for name, parameter in wrapped.named_parameters():
        if parameter.is_floating_point() and (".lora_" in name or ".modules_to_save." in name):
            parameter.data = parameter.data.to(dtype)
    return wrapped.eval()


def place_adapter(model: Any, path: Path) -> PeftModel:
    """Return `model`, which is on the meta device, with the adapter of `path` on it in eval mode.

    The adapter's tensors are read from its file as they are used, in the dtypes that they have there; all others stay
    on the meta device.

    Raises:
        ModelError: as `add_adapter`.
    """
    stored = _stored(path)
    _check_modules(stored, path)
    with _fitting(path), torch.device("meta"):
        config = PeftConfig.from_pretrained(str(path))
        config.inference_mode = True
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
        empty = wrapped.state_dict()
        placed = get_peft_model_state_dict(wrapped, state_dict=empty)
    # Names that fit as they are stay: of a few model types PEFT writes names that it would not read back.
    if stored.keys() != placed.keys():
        stored = as_peft_reads(wrapped, stored)
    _check_match(stored, placed, path)
    # PEFT hands tensors through under the names of its file: which is which shows in their identity.
    names = {id(tensor): name for name, tensor in empty.items()}
    found = {names[id(tensor)]: stored[name] for name, tensor in placed.items()}
    wrapped.load_state_dict(found, assign=True, strict=False)
    return wrapped.eval()


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    with reading_model(
        f"the adapter in {path} does not fit its base model",
        "the base model that the adapter was trained on",
        f"check base_model_name_or_path in {path / ADAPTER_CONFIG}",
    ):
        yield


def merged(model: PeftModel) -> Any:
    """Return the plain transformers model with the adapter added into its weights (W + alpha / r * B A)."""
    with reading_model(
        "the adapter can't be added into the weights of its base model",
        "an adapter whose sums with the weights are finite numbers of their format",
        "take an earlier checkpoint, or another number format with --dtype",
    ):
        return model.merge_and_unload(safe_merge=True).eval()


def _stored(path: Path) -> dict[str, torch.Tensor]:
    file = path / ADAPTER_WEIGHTS
    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise ModelError(f"{path} has no {ADAPTER_WEIGHTS}", "a whole adapter folder", "copy it again") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged: {error}", "a whole safetensors file", "copy or save it again") from error


def _check_finite(stored: dict[str, torch.Tensor], path: Path) -> None:
    """Raise at values that are no numbers: no value equals them, so that they would seem to have no place."""
    for name, tensor in stored.items():
        if not is_finite(tensor):
            raise not_finite(path, name)


def _check_modules(stored: dict[str, torch.Tensor], path: Path) -> None:
    """Raise when a module that was trained in full, such as the projector, is missing from the weight file."""
    modules = adapter_config(path).get("modules_to_save") or []
    lost = [module for module in modules if not any(f"{module}." in name for name in stored)]
    if lost:
        raise ModelError(
            f"the adapter in {path} was trained with {', '.join(lost)}, but {ADAPTER_WEIGHTS} does not hold it",
            "an adapter folder with its trained projector",
            "save it again with PEFT's save_pretrained, which keeps modules_to_save",
        )


def _check_match(stored: dict[str, torch.Tensor], loaded: dict[str, torch.Tensor], path: Path) -> None:
    lost = sorted(set(stored) - set(loaded))
    empty = sorted(set(loaded) - set(stored))
    same = [name for name in stored if name in loaded]
    wrong = [name for name in same if not _equal(stored[name], loaded[name])]
    if not (lost or empty or wrong):
        return
    example = (lost or empty or wrong)[0]
    raise ModelError(
        f"the adapter in {path} holds {len(stored)} tensors; {len(same) - len(wrong)} of them match the base model,"
        f" which has room for {len(loaded)} (for example {example})",
        "an adapter whose tensors all match",
        f"check base_model_name_or_path in {path / ADAPTER_CONFIG}",
    )


def _equal(stored: torch.Tensor, loaded: torch.Tensor) -> bool:
    """Return whether a stored tensor became `loaded`, or may take its place where that is on the meta device."""
    if loaded.is_meta:
        return stored.shape == loaded.shape
    return torch.equal(stored.to(loaded.dtype), loaded.cpu())

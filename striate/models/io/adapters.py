"""Loads PEFT adapter folders, and proves that every stored tensor reaches the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from striate.errors import ModelError
from striate.models.io.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config
from striate.models.io.foreign import reading_model


def add_adapter(model: Any, path: Path) -> PeftModel:
    """Return `model` with the adapter of `path` on it, in eval mode; the trained projector is restored with it.

    Raises:
        ModelError: no weights, or not every tensor of the adapter has its place in `model`.
    """
    stored = _stored(path)
    _check_modules(stored, path)
    dtype = next(model.parameters()).dtype
    with reading_model(
        f"the adapter in {path} does not fit its base model",
        "the base model that the adapter was trained on",
        f"check base_model_name_or_path in {path / ADAPTER_CONFIG}",
    ):
        # Adapters in the model's own type: outside autocast a float32 projector can't follow a bfloat16 encoder.
        wrapped = PeftModel.from_pretrained(model, str(path), autocast_adapter_dtype=False)
    _check_match(stored, get_peft_model_state_dict(wrapped), path)
    for name, parameter in wrapped.named_parameters():
        if parameter.is_floating_point() and (".lora_" in name or ".modules_to_save." in name):
            parameter.data = parameter.data.to(dtype)
    return wrapped.eval()


def merged(model: PeftModel) -> Any:
    """Return the plain transformers model with the adapter added into its weights (W + alpha / r * B A)."""
    return model.merge_and_unload(safe_merge=True).eval()


def _stored(path: Path) -> dict[str, torch.Tensor]:
    file = path / ADAPTER_WEIGHTS
    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise ModelError(f"{path} has no {ADAPTER_WEIGHTS}", "a whole adapter folder", "copy it again") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged: {error}", "a whole safetensors file", "copy or save it again") from error


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
    wrong = [name for name in same if not torch.equal(stored[name].to(loaded[name].dtype), loaded[name].cpu())]
    if not (lost or empty or wrong):
        return
    example = (lost or empty or wrong)[0]
    raise ModelError(
        f"the adapter in {path} holds {len(stored)} tensors; {len(same) - len(wrong)} of them match the base model,"
        f" which has room for {len(loaded)} (for example {example})",
        "an adapter whose tensors all match",
        f"check base_model_name_or_path in {path / ADAPTER_CONFIG}",
    )

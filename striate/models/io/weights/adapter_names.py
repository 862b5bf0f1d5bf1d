"""The names of an adapter's tensors on disk, from which PEFT finds their places in the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from striate.errors import ModelError
from striate.models.io.adapter_folder import ADAPTER_WEIGHTS

_PREFIX = "base_model.model."


def as_peft_reads(model: PeftModel, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return stored tensors under the names that they have once PEFT has read them onto `model`.

    PEFT renames them as transformers renames a checkpoint of the model's type.
    """
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
    except ImportError:
        # A PEFT that renames nothing.
        return dict(stored)
    found: dict[str, Tensor] = convert_peft_adapter_state_dict_for_transformers(model, _config(model), dict(stored))
    return found


def check_adapter_names(model: PeftModel) -> None:
    """Check that PEFT can read the adapter of `model` back once it is saved.

    Raises:
        ModelError: it can't.
    """
    _for_peft(model, get_peft_model_state_dict(model, save_embedding_layers=False))


def rename_for_peft(model: PeftModel, folder: Path) -> None:
    """Rename the tensors of the adapter that PEFT wrote to `folder`, where it would not read them as what they are.

    Raises:
        ModelError: no name is read as the tensor's own.
    """
    file = folder / ADAPTER_WEIGHTS
    stored = load_file(file)
    named = _for_peft(model, stored)
    if named.keys() != stored.keys():
        save_file(named, file, metadata={"format": "pt"})


def _for_peft(model: PeftModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under names that PEFT reads as those that they have in `tensors`.

    Rules such as `layers.` to `language_model.layers.` also fit names that they have made. The name before, which
    checkpoints of the model's type have, is read right.
    """
    read = as_peft_reads(model, tensors)
    lost = {name for name, tensor in tensors.items() if read.get(name) is not tensor}
    if not lost:
        return dict(tensors)
    rules = get_model_conversion_mapping(model.get_base_model(), add_legacy=False)[::-1]
    back = [rule.reverse_transform() for rule in rules if isinstance(rule, WeightRenaming)]
    named = {
        _PREFIX + _renamed(name.removeprefix(_PREFIX), back) if name in lost else name: tensor
        for name, tensor in tensors.items()
    }
    read = as_peft_reads(model, named)
    lost = {name for name, tensor in tensors.items() if read.get(name) is not tensor}
    if lost:
        raise ModelError(
            f"PEFT would not read {len(lost)} of the adapter's {len(tensors)} tensors back, such as {min(lost)}",
            "a model type whose adapters PEFT reads under names of their own",
            "set train.method=full, or use another version of peft",
        )
    return named


def _renamed(name: str, rules: Iterable[WeightRenaming]) -> str:
    for rule in rules:
        name, _ = rule.rename_source_key(name)
    return name


def _config(model: PeftModel) -> Any:
    return model.peft_config[model.active_adapter]

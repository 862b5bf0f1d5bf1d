"""Selects LoRA targets whose names PEFT leaves alone: on some mixture-of-experts models it rewrites them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig


def not_rewritten(model: Any, names: Sequence[str]) -> list[str]:
    """Return the names that PEFT would adapt as they are.

    On models whose experts are one tensor, PEFT turns names such as `gate_proj` into that tensor in every layer, also
    when the name is that of a plain linear layer: adapters would lie outside the region.
    """
    kinds = {name.rpartition(".")[2] for name in names}
    kept = {kind for kind in kinds if _is_kept(model, [name for name in names if name.rpartition(".")[2] == kind])}
    return [name for name in names if name.rpartition(".")[2] in kept]


def _is_kept(model: Any, names: list[str]) -> bool:
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:
        return True
    trial = LoraConfig(target_modules=list(names))
    try:
        convert_peft_config_for_transformers(trial, model, conversions=None)
    except ValueError:
        # Some names are only converted together with others.
        return False
    return set(trial.target_modules or ()) == set(names)

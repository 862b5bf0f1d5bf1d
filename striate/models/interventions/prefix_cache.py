"""Tells whether a model can continue prompts from a shared prefix's KV cache, and selects rows of that cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from striate.models.structure.decoder_stack import unwrap

READ = frozenset({"input_ids", "attention_mask"})


def why_not_continued(model: Any, prompt_names: Iterable[str]) -> str:
    """Return why prompts of `model` can't be continued from a KV cache by position alone, or an empty string.

    `prompt_names` are the tensors that a prompt has for each token. Refused are models that count positions along
    several axes (Qwen2-VL, Wang et al. 2024, arXiv 2409.12191), that mark tokens by kind (Gemma 3, PaliGemma), or whose
    forward pass takes no positions.
    """
    core = unwrap(model)
    marks = sorted(set(prompt_names) - READ)
    if marks:
        return f"its prompts carry {', '.join(marks)}"
    if any(hasattr(module, "get_rope_index") for module in core.modules()):
        return "it counts positions along several axes"
    if "position_ids" not in inspect.signature(core.forward).parameters:
        return "its forward pass takes no positions"
    return ""


def why_not_selected(cache: Any) -> str:
    """Return why rows of a KV cache can't be picked, repeated and dropped, or an empty string.

    Only a cache whose every layer keeps all keys and values will do: windows and states of linear attention have a
    shape, or a past, of their own.
    """
    layers = getattr(cache, "layers", None)
    if not layers:
        return f"its cache is a {type(cache).__name__}"
    kinds = sorted({type(layer).__name__ for layer in layers} - {"DynamicLayer"})
    return f"its cache has {', '.join(kinds)}" if kinds else ""


def select_rows(cache: Any, rows: Any) -> None:
    """Keep only `rows` (indices, in any order and number) of the KV cache, in place."""
    cache.batch_select_indices(rows)


def last_logits_only(model: Any) -> dict[str, int]:
    """Return the argument that makes the model compute the logits of the last position only, where it has one."""
    known = "logits_to_keep" in inspect.signature(unwrap(model).forward).parameters
    return {"logits_to_keep": 1} if known else {}

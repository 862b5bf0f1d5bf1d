"""Attention masks of a batch whose padding is known: Hugging Face's own masks, without asking the accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

_NAME = "sdpa"


@contextmanager
def mask_known(padding_BT: torch.Tensor) -> Iterator[None]:
    """Say for a while what `padding_BT`, the batch's attention mask as it is on the CPU, holds.

    Without padding, transformers leaves the mask out and attention is causal by itself; it finds that out by looking
    at the mask on the accelerator, which makes the CPU wait for all work before. What it decides stays the same.
    """
    whole, shape = bool(padding_BT.all()), tuple(padding_BT.shape)
    original = ALL_MASK_ATTENTION_FUNCTIONS[_NAME]

    def known(**given: Any) -> torch.Tensor | None:
        mask, window = given.get("attention_mask"), given.get("local_size")
        sizes = given.get("q_length"), given.get("kv_length"), given.get("q_offset", 0)
        alike = isinstance(mask, torch.Tensor) and tuple(mask.shape) == shape and sizes == (shape[1], shape[1], 0)
        if not (alike and given.get("allow_is_causal_skip", True)):
            return original(**given)
        if whole and (window is None or shape[1] < window):
            return None
        return original(**{**given, "allow_is_causal_skip": False})

    ALL_MASK_ATTENTION_FUNCTIONS[_NAME] = known
    try:
        yield
    finally:
        if original is type(ALL_MASK_ATTENTION_FUNCTIONS)._global_mapping[_NAME]:
            del ALL_MASK_ATTENTION_FUNCTIONS[_NAME]
        else:
            ALL_MASK_ATTENTION_FUNCTIONS[_NAME] = original

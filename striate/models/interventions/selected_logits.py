"""Computes the logits of chosen positions only: the LM head never sees the hidden states of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from striate.models.structure.decoder_stack import unwrap
from striate.models.structure.vision_modules import part_of


def answer_logits(model: nn.Module, inputs: Mapping[str, Any], rows_N: Tensor, columns_N: Tensor) -> Tensor:
    """Return the logits (N, V) at N positions of a batch, by one forward pass without a cache.

    The model's own code computes them, so that caps and scales of logits hold; only its LM head is given fewer rows.

    Args:
        model: an LVLM, plain or wrapped by PEFT.
        inputs: what its forward takes, without labels.
        rows_N: the sample of each position.
        columns_N: the place of each position in its sample.
    """
    shape = inputs["input_ids"].shape
    with _only_positions(part_of(unwrap(model).get_output_embeddings), rows_N, columns_N):
        logits = model(**inputs, use_cache=False).logits
    # A model without a separate LM head module gives logits for every position.
    return logits[rows_N, columns_N] if logits.shape[:2] == shape else logits[0]


@contextmanager
def _only_positions(head: nn.Module | None, rows_N: Tensor, columns_N: Tensor) -> Iterator[None]:
    """Let the LM head see only the hidden states (1, N, D) of the given positions."""
    if head is None:
        yield
        return

    def keep(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # The last layer may have left the others out already.
        if args[0].shape[:2] == (1, len(rows_N)):
            return args
        return (args[0][rows_N, columns_N].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()

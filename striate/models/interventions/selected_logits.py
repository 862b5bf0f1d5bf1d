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
    return answer_outputs(model, inputs, rows_N, columns_N)[0]


def answer_outputs(
    model: nn.Module, inputs: Mapping[str, Any], rows_N: Tensor, columns_N: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return what `answer_logits` does, and the hidden states (N, D) that the LM head makes the logits of.

    These are the last ones, after the final norm; None where the model's LM head is no module of its own.
    """
    shape = inputs["input_ids"].shape
    states: list[Tensor] = []
    with _only_positions(part_of(unwrap(model).get_output_embeddings), rows_N, columns_N, states):
        logits = model(**inputs, use_cache=False).logits
    # A model without a separate LM head module gives logits for every position.
    logits_NV = logits[rows_N, columns_N] if logits.shape[:2] == shape else logits[0]
    return logits_NV, states[0][0] if states else None


@contextmanager
def _only_positions(head: nn.Module | None, rows_N: Tensor, columns_N: Tensor, states: list[Tensor]) -> Iterator[None]:
    """Let the LM head see only the hidden states (1, N, D) of the given positions, and add them to `states`."""
    if head is None:
        yield
        return

    def keep(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # The last layer may have left the others out already.
        kept = args[0] if args[0].shape[:2] == (1, len(rows_N)) else args[0][rows_N, columns_N].unsqueeze(0)
        states.append(kept)
        return (kept, *args[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()

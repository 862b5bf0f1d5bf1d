"""Numerical agreement: whether two ways to the same hidden states differ by more than the model's own rounding.

Kernels round differently at different sizes of batch. In bfloat16 that alone moves the last hidden states of a small
model of 30 layers by 4 to 5%, so that a fixed limit would either refuse good models or let faults of others through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.packing import Batch
from striate.models.structure.anatomy import unwrap

# How many times as far as by rounding two ways of computing the same may lie apart.
TIMES = 3.0
_ROWS = 3


def rounding_error(model: nn.Module, collator: Collator, items: Sequence[Encoded]) -> float:
    """Return the largest ||h' - h|| / ||h|| over samples: h for a sample alone, h' for it in a batch of its copies.

    Both are the same by mathematics, and nothing is padded.

    Args:
        model: as it is compared, in eval mode and without gradients.
        collator: joins samples.
        items: encoded samples, with their pictures.
    """
    device = next(model.parameters()).device
    worst = 0.0
    for item in items:
        alone, together = (
            hidden_states(model, to_device(collator.join([item] * count), device))[:1] for count in (1, _ROWS)
        )
        worst = max(worst, float((together - alone).norm() / alone.norm()))
    return worst


def unexplained_difference(
    difference: float,
    tolerance: float,
    model: nn.Module,
    collator: Collator,
    items: Callable[[], Sequence[Encoded]],
) -> str:
    """Return in words how large a difference is that neither `tolerance` nor rounding explains, or nothing.

    Args:
        difference: ||h' - h|| / ||h|| of two ways of computing the same.
        tolerance: up to which it is accepted.
        model: as for `rounding_error`, with the next one and what `items` gives.
        collator: joins samples.
        items: gives the compared samples, encoded; called above the tolerance only.
    """
    if difference <= tolerance:
        return ""
    rounding = rounding_error(model, collator, items())
    return "" if difference <= TIMES * rounding else f"by {difference:.1%} (by rounding: {rounding:.1%})"


def hidden_states(model: nn.Module, inputs: Batch) -> torch.Tensor:
    """Return the hidden states (B, T, D) that the LM head gets, in float32; logits of a model without one."""
    caught: list[torch.Tensor] = []

    def catch(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        caught.append(args[0])
        return (args[0][:, -1:], *args[1:])

    head = unwrap(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(catch) if head is not None else None
    try:
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False).logits
    finally:
        if handle:
            handle.remove()
    return (caught[0] if caught else logits).float()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device."""
    return {name: value.to(device) for name, value in batch.items()}

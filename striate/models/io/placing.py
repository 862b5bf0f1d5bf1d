"""Moves a collated batch to the model's device, pictures in its dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from striate.models.structure.decoder_stack import unwrap


def on_device(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a collated batch without its labels, on the device of the model's embeddings, pictures in its dtype."""
    core = unwrap(model)
    device = core.get_input_embeddings().weight.device
    return {
        name: value.to(device, core.dtype) if value.is_floating_point() else value.to(device)
        for name, value in batch.items()
        if name != "labels"
    }

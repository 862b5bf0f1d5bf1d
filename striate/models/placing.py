"""Inputs on the model's device, in its precision."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from striate.models.stack import unwrap


def to_model(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch on the model's device, its pictures in the model's dtype."""
    core = unwrap(model)
    return {
        name: value.to(core.device, core.dtype) if value.is_floating_point() else value.to(core.device)
        for name, value in batch.items()
    }

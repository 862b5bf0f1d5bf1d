"""Replaces a module's forward method for a block of code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def own_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward method of `module` in the block, and restore it afterwards."""
    former = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if former is None:
            del module.forward
        else:
            module.forward = former


def without_checkpointing(layer: nn.Module) -> Callable[..., Any]:
    """Return the layer's forward method without the checkpointing that transformers wraps around it from 5.24 on."""
    inner = getattr(type(layer).forward, "__wrapped__", None)
    wrapped = isinstance(layer, GradientCheckpointingLayer) and "__call__" not in vars(GradientCheckpointingLayer)
    if inner is None or not wrapped or "forward" in vars(layer):
        return layer.forward
    return MethodType(inner, layer)

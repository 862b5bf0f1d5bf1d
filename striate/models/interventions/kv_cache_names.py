"""Names of the KV cache in transformers: `past_key_values`, and `cache` since 5.24."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from striate.models.structure.decoder_stack import unwrap

NAMES = ("cache", "past_key_values")
CURRENT = next(name for name in NAMES if name in BaseModelOutputWithPast.__dataclass_fields__)


def cache_name(forward: Callable[..., Any]) -> str:
    """Return the name under which a forward method takes its KV cache; where it does not say, that of transformers."""
    known = inspect.signature(forward).parameters
    return next((name for name in NAMES if name in known), CURRENT)


def model_cache_name(model: nn.Module) -> str:
    """Return the name under which a model takes its KV cache, wrapped in an adapter or not."""
    return cache_name(unwrap(model).forward)


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """Return the KV cache among a forward method's keyword arguments, or `None`."""
    return next((arguments[name] for name in NAMES if arguments.get(name) is not None), None)


def without_cache(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a forward method's keyword arguments but the KV cache."""
    return {name: value for name, value in arguments.items() if name not in NAMES}


def cache_of(output: Any) -> Any:
    """Return the KV cache that a model's output has, or `None`."""
    # Asked for the old name, an output of transformers 5.24 has it too, and warns.
    return next((output[name] for name in NAMES if name in output), None)

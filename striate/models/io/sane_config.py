"""What a model's config must say before anything is built from it: numbers that a model could compute with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from striate.errors import ModelError
from striate.printable import shown

# Names of fields that hold the id of an image token, and of those that keep a norm from dividing by zero.
_IMAGE_TOKENS = ("image_token_id", "image_token_index")
_EPSILONS = ("eps", "epsilon")


def check_config(config: Any, source: str) -> None:
    """Raise for numbers in `config`, read from `source`, of which transformers builds a model without a word.

    Raises:
        ModelError: a number that is none, an epsilon that is negative or infinite, or an image token that is no id.
    """
    for name, value in _numbers(config.to_dict()):
        allowed = _allowed(name.rpartition(".")[2], value)
        if allowed:
            raise ModelError(
                f"{source}/config.json has {name} {shown(value)}", allowed, "mend the file, or copy it from the model"
            )


def _allowed(key: str, value: float) -> str:
    """Return what the field `key` may hold; nothing where `value` is such a number."""
    if math.isnan(value):
        return "a number"
    if key in _IMAGE_TOKENS and value < 0:
        return "the id of a token: 0 or more"
    if key.rpartition("_")[2] in _EPSILONS and not 0 <= value < math.inf:
        return "a small number, 0 or more, such as 1e-06"
    return ""


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield every number in `values` with its name, that of what is within another behind a dot."""
    left = [("", values)]
    while left:
        prefix, part = left.pop()
        for key, value in part.items():
            name = f"{prefix}{key}"
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, dict):
                    left.append((f"{name}.", one))
                elif isinstance(one, int | float):
                    yield name, one

"""A decoder layer's arguments at the text tokens of a batch: positions, and the rows of the attention mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from striate.errors import ModelError

# Arguments of decoder layers that hold something for every position, and the dimension that counts positions.
_BY_POSITION = {"position_ids": -1, "position_embeddings": -2, "cache_position": -1, "per_layer_input": -2}
# What transformers hands to variable-length attention: about the samples, not about positions.
VARLEN = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def arguments_at(given: Mapping[str, Any], rows_RX: Tensor, length: int) -> dict[str, Any]:
    """Return a layer's other arguments at `rows_RX` of the flat batch; -1 stands for any row."""
    return {name: _argument_at(name, value, rows_RX, length) for name, value in given.items()}


def _argument_at(name: str, value: Any, rows_RX: Tensor, length: int) -> Any:
    """Return one argument at the rows: of shape (T,), (1, T), (B, T), (3, B, T), or these with a width."""
    if isinstance(value, tuple | list) and any(isinstance(part, Tensor) for part in value):
        return type(value)(_argument_at(name, part, rows_RX, length) for part in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 1:
        return value[rows_RX % length]
    position = value.ndim + _dimension(name)
    by_sample = value.movedim((position - 1, position), (0, 1))
    taken = by_sample[0][rows_RX % length] if by_sample.shape[0] == 1 else by_sample.flatten(0, 1)[rows_RX]
    return taken.movedim((0, 1), (position - 1, position)).contiguous()


def _dimension(name: str) -> int:
    """Return the dimension of an argument that counts positions, from the last."""
    for known, dim in _BY_POSITION.items():
        if name.startswith(known):
            return dim
    raise cannot_skip(
        f"a decoder layer takes {name!r}, and it is not known how that goes with positions", ", ".join(_BY_POSITION)
    )


def mask_rows(mask: Any, text_BX: Tensor, length: int, keys: int) -> Tensor:
    """Return the rows of text tokens of the attention mask, (B, 1, X, K); a causal one if `mask` is None."""
    # -1 gives the last position, which sees some key in every sample.
    places_BX = text_BX % length
    if mask is None:
        return torch.arange(keys, device=text_BX.device) <= places_BX[:, None, :, None] + (keys - length)
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise ModelError(
            "a decoder layer takes an attention mask that can't be cut by rows",
            "a mask of shape (batch, 1, queries, keys), or none",
            "load the model with attn_implementation='sdpa', or use train.image_tokens=all",
        )
    index = places_BX[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
    return mask.expand(len(text_BX), -1, -1, -1).gather(2, index)


def cannot_skip(reason: str, allowed: str) -> ModelError:
    """Return the error for a layer that image tokens can't skip."""
    return ModelError(reason, allowed, "use train.image_tokens=all")

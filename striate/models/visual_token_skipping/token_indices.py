"""Where image tokens and other tokens stand in a batch, and a layer's arguments at either."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from striate.errors import ModelError

# Arguments of decoder layers that hold something for every position, and the dimension that counts positions.
_BY_POSITION = {"position_ids": -1, "position_embeddings": -2, "cache_position": -1, "per_layer_input": -2}


@dataclass(frozen=True)
class Places:
    """Where the image tokens and the other tokens of a batch stand.

    Rows with fewer of a kind than the longest are filled up with position T, one behind the last: what is computed
    there is dropped, so that it has no gradient either.

    Attributes:
        image: positions of image tokens, (B, I).
        text: positions of all other tokens, padding among them, (B, X).
        length: T, the tokens of a row.
    """

    image: Tensor
    text: Tensor
    length: int
    _masks: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, image_BT: Tensor) -> Places | None:
        """Return the places for a mask of image tokens, or None where there are none."""
        if not bool(image_BT.any()):
            return None
        return cls(_positions(image_BT), _positions(~image_BT), image_BT.shape[1])

    def image_mask(self, dtype: torch.dtype) -> Tensor:
        """Return 1 at image tokens and 0 elsewhere, (B, T, 1); made once."""
        if dtype not in self._masks:
            ones = torch.ones(self.image.shape, dtype=dtype, device=self.image.device)
            wide = ones.new_zeros(len(ones), self.length + 1).scatter_(1, self.image, ones)
            self._masks[dtype] = wide[:, :-1, None]
        return self._masks[dtype]


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states in a decoder layer's output, which some families wrap in a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def with_hidden(output: Any, hidden_BTD: Tensor) -> Any:
    """Return a decoder layer's output with other hidden states."""
    return (hidden_BTD, *output[1:]) if isinstance(output, tuple) else hidden_BTD


def take(values: Tensor, places_BX: Tensor, dim: int) -> Tensor:
    """Return `values` (B, ...) at `places_BX` along dimension `dim`; a place behind the last gives the last."""
    dim = dim % values.ndim
    index = places_BX.clamp_max(values.shape[dim] - 1)
    shape = [1] * values.ndim
    shape[0], shape[dim] = index.shape
    target = list(values.shape)
    target[dim] = index.shape[1]
    return values.gather(dim, index.view(shape).expand(target))


def arguments_at(given: dict[str, Any], places_BX: Tensor) -> dict[str, Any]:
    """Return a layer's other arguments at the positions `places_BX`."""
    return {name: _argument_at(name, value, places_BX) for name, value in given.items()}


def _argument_at(name: str, value: Any, places_BX: Tensor) -> Any:
    """Return one argument at the positions `places_BX`.

    Raises:
        ModelError: a tensor of which it is not known how it goes with positions.
    """
    if isinstance(value, tuple | list) and any(isinstance(part, Tensor) for part in value):
        return type(value)(_argument_at(name, part, places_BX) for part in value)
    if not isinstance(value, Tensor):
        return value
    return _spread(value, places_BX, _dimension(name))


def _dimension(name: str) -> int:
    """Return the dimension of an argument that counts positions, from the last."""
    dim = next((dim for known, dim in _BY_POSITION.items() if name.startswith(known)), None)
    if dim is None:
        raise ModelError(
            f"a decoder layer takes {name!r}, and it is not known how that goes with positions",
            ", ".join(_BY_POSITION),
            "use train.image_tokens=all",
        )
    return dim


def _spread(value: Tensor, places_BX: Tensor, dim: int) -> Tensor:
    """Return `value`, (T,), (1, T), (B, T), (3, B, T) or these with a width, at the positions of each row."""
    rows = places_BX.shape[0]
    if value.ndim == 1:
        return take(value.expand(rows, -1), places_BX, -1)
    batch_dim = value.ndim + dim - 1
    sizes = [-1] * value.ndim
    sizes[batch_dim] = rows
    moved = value.expand(sizes).movedim(batch_dim, 0)
    return take(moved, places_BX, dim).movedim(0, batch_dim)


def at_rows(name: str, value: Any, rows_BN: Tensor, length: int) -> Any:
    """Return a layer's argument at `rows_BN` of the batch as one row of samples of `length` tokens.

    Raises:
        ModelError: a tensor of which it is not known how it goes with positions.
    """
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 1:
        return value[rows_BN % length]
    position = value.ndim + _dimension(name)
    by_sample = value.movedim((position - 1, position), (0, 1))
    found = by_sample[0][rows_BN % length] if by_sample.shape[0] == 1 else by_sample.flatten(0, 1)[rows_BN]
    return found.movedim((0, 1), (position - 1, position)).contiguous()


def rows_of_mask(mask: Any, hidden_BTD: Tensor, places: Places, past: int) -> Tensor:
    """Return the rows of text tokens of the attention mask, (B, 1, X, past + T)."""
    if mask is None:
        keys = torch.arange(past + places.length, device=hidden_BTD.device)
        return keys <= places.text[:, None, :, None] + past
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise ModelError(
            "a decoder layer takes an attention mask that can't be cut by rows",
            "a mask of shape (batch, 1, queries, keys), or none",
            "load the model with attn_implementation='sdpa', or use train.image_tokens=all",
        )
    return take(mask.expand(hidden_BTD.shape[0], -1, -1, -1), places.text, 2)


def _positions(mask_BT: Tensor) -> Tensor:
    """Return the positions where each row of `mask_BT` holds, in order, filled up with T."""
    length = mask_BT.shape[1]
    most = int(mask_BT.sum(1).max())
    places = torch.arange(length, device=mask_BT.device).expand_as(mask_BT)
    return places.masked_fill(~mask_BT, length).sort(1).values[:, :most]

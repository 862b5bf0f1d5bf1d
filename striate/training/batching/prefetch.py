"""A training set encoded once by worker processes, handed over cheaply: such a pass waits for the main process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from striate.data.encoding import Encoded

Entry = TypeVar("Entry")
Name = TypeVar("Name")
# Few enough for a container's shared memory: pictures in several crops take megabytes each.
_TOGETHER = 4


def encoded_ahead(
    entries: Sequence[Entry], prepare: Callable[[Entry], tuple[Name, Encoded]], workers: int
) -> Iterator[tuple[Name, Encoded]]:
    """Yield what `prepare` makes of each entry, in order; `workers` processes do it ahead, 0: this one does.

    Tensors of tokens own their memory; those of pictures keep a file open as long as they live.

    Raises:
        DataError: as `prepare` does.
    """
    once: Any = entries
    loader = DataLoader(once, batch_size=_TOGETHER, collate_fn=_Parcels(prepare), num_workers=workers)
    for parcel in loader:
        for name, tokens, pictures in parcel:
            yield name, Encoded({key: torch.as_tensor(value) for key, value in tokens.items()}, pictures)


@dataclass(frozen=True)
class _Parcels(Generic[Entry, Name]):
    """Prepares entries in a worker, and makes parcels of them."""

    prepare: Callable[[Entry], tuple[Name, Encoded]]

    def __call__(self, entries: list[Entry]) -> list[tuple[Name, dict[str, Any], dict[str, torch.Tensor]]]:
        """Return the prepared entries, small tensors as values: handing a tensor over takes longer than copying it."""
        found = map(self.prepare, entries)
        return [(name, {key: _value(one) for key, one in item.tokens.items()}, item.pictures) for name, item in found]


def _value(tensor: torch.Tensor) -> Any:
    """Return the tensor as an array; as it is if arrays have no such numbers."""
    return tensor if tensor.dtype is torch.bfloat16 else tensor.numpy()

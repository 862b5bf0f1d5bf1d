"""Prefetches encoded samples: worker processes encode a training set once, ahead of a pass over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.samples import Sample
from striate.errors import DataError
from striate.training.batching.workers import worker_options

# Few enough for a container's shared memory: pictures in several crops take megabytes each.
_TOGETHER = 4


def encoded_ahead(samples: Sequence[Sample], collator: Collator, workers: int) -> Iterator[Encoded]:
    """Yield each sample, encoded, in order; `workers` processes do it ahead, 0: this one does.

    Tensors of tokens own their memory; those of pictures keep a file open as long as they live.

    Raises:
        DataError: a sample that can't be used.
    """
    dataset: Any = samples
    encode = partial(_encode, collator)
    workers = min(workers, -(-len(samples) // _TOGETHER))
    for batch in DataLoader(dataset, batch_size=_TOGETHER, collate_fn=encode, **worker_options(workers)):
        if isinstance(batch, DataError):
            raise batch
        for tokens, pictures in batch:
            yield Encoded({name: torch.as_tensor(value) for name, value in tokens.items()}, pictures)


def _encode(
    collator: Collator, samples: list[Sample]
) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]] | DataError:
    # Tokens as arrays: handing a small tensor over takes longer than copying it.
    try:
        encoded = collator.encode_each(samples)
    except DataError as error:
        # Raised in a worker process, it would arrive as its traceback.
        return error
    return [({name: _array(tensor) for name, tensor in one.tokens.items()}, one.pictures) for one in encoded]


def _array(tensor: torch.Tensor) -> Any:
    """Return the tensor as an array; as it is if arrays have no such numbers."""
    return tensor if tensor.dtype is torch.bfloat16 else tensor.numpy()

"""What frozen parts of a model make of a training sample, computed once: how steps get it in place of the sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.packing import Batch
from striate.data.samples import Sample
from striate.training.caching.tensor_store import Store


class Kept(Protocol):
    """A training set with what is kept of it, and how its model takes that."""

    @property
    def collator(self) -> Collator:
        """The collator that gives samples with what is kept of them."""

    def serving(self, batch: Batch) -> AbstractContextManager[Batch]:
        """Return a context with the batch as the model takes it; in the block what is kept stands for the rest."""


class KeptCollator(Collator, ABC):
    """Gives samples that were encoded once, with what is kept of them.

    Attributes:
        plain: the collator that encoded them, for whoever wants pictures.
    """

    def __init__(self, plain: Collator, items: Mapping[Sample, tuple[Encoded, str]], store: Store) -> None:
        """Serve `items`: samples without pixels, and the keys of what is kept in `store` (empty: nothing)."""
        self.plain, self.max_length, self.train = plain, plain.max_length, plain.train
        self._fill, self._encoder = plain._fill, plain._encoder
        self._items, self._store = items, store

    def encode_each(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Return the samples as they were encoded, with what is kept of them."""
        found = (self._items[sample] for sample in samples)
        return [self.with_kept(item, self._store.get(key)) if key else item for item, key in found]

    @abstractmethod
    def with_kept(self, item: Encoded, kept: torch.Tensor) -> Encoded:
        """Return the sample with what is kept of it."""

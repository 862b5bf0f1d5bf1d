"""Collator that serves cached vision features in the place of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.samples import Sample
from striate.training.caching.tensor_store import Store

FEATURES = "vision_features"


class FeatureCollator(Collator):
    """Gives samples that were encoded once, with their pictures' cached features in the place of the pixels.

    Attributes:
        plain: the collator that encoded them, for whoever wants pictures.
    """

    def __init__(self, plain: Collator, items: Mapping[Sample, tuple[Encoded, str]], store: Store) -> None:
        """Serve `items`: samples without pixels, and the keys of their features in `store` (empty: no picture)."""
        self.plain, self.max_length, self.train = plain, plain.max_length, plain.train
        self._fill, self._encoder = plain._fill, plain._encoder
        self._items, self._store = items, store

    def encode_each(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Return the samples as they were encoded, with the features of their pictures."""
        return [self._with_features(*self._items[sample]) for sample in samples]

    def _with_features(self, item: Encoded, key: str) -> Encoded:
        return Encoded(item.tokens, {**item.pictures, FEATURES: self._store.get(key)}) if key else item

"""Collator that serves cached vision features in the place of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.samples import Sample
from striate.errors import DataError

FEATURES = "vision_features"


class FeatureCollator(Collator):
    """Gives samples that were encoded once, with cached vision features in the place of pixels.

    Attributes:
        plain: the collator that encoded them, for whoever wants pictures.
    """

    def __init__(
        self, plain: Collator, samples: Mapping[Sample, tuple[Encoded, str]], features: Mapping[str, torch.Tensor]
    ) -> None:
        """Serve `samples`, each with the name of its `features`; it is empty for one without pictures."""
        vars(self).update(vars(plain))
        self.plain = plain
        self._samples, self._features = samples, features

    def encode_each(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Return the samples as they were encoded, with the features of their pictures.

        Raises:
            DataError: a sample is not among them, as it was broken then.
        """
        for sample in samples:
            if sample not in self._samples:
                raise DataError(f"sample {sample.id!r} was broken when vision features were cached")
        return [self._with_features(*self._samples[sample]) for sample in samples]

    def _with_features(self, encoded: Encoded, key: str) -> Encoded:
        return Encoded(encoded.tokens, {**encoded.pictures, FEATURES: self._features[key]}) if key else encoded

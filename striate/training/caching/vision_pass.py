"""One pass of a training set through the frozen vision encoder: samples encoded, features of every picture stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.packing import Batch
from striate.data.samples import Sample
from striate.models.interventions.vision_feature_tap import PIXELS, VisionTap
from striate.progress import Progress
from striate.training.batching.prefetch import encoded_ahead
from striate.training.caching.tensor_store import check_room
from striate.training.inputs.step_inputs import SHAPES
from striate.training.precision import HALF

# Samples whose pictures go through the encoder at once.
_BATCH = 16
Add = Callable[[str, torch.Tensor], None]


@dataclass
class VisionPass:
    """Goes once over a training set: encodes every sample, and runs the vision encoder on every picture.

    Attributes:
        tap: of the model.
        keys: the training set, each sample once, with the name of its pictures.
        collator: encodes samples.
        workers: processes that read pictures ahead.
        half: the half-precision type that the model computes in, if any.
        progress: where to show it.
    """

    tap: VisionTap
    keys: dict[Sample, str]
    collator: Collator
    workers: int
    half: torch.dtype | None
    progress: Progress
    _dtype: torch.dtype | None = field(default=None, init=False)

    def run(self, add: Add | None, folder: Path | None) -> list[Encoded]:
        """Return the samples, encoded, without pixels; the features (rows, ...) of all pictures go to `add`.

        Args:
            add: called with the pictures' name and features; None leaves the encoder out.
            folder: where features are stored; None for memory.

        Raises:
            ArtifactError: there is no room for them.
        """
        samples: list[Encoded] = []
        waiting: dict[str, Batch] = {}
        missing = set(self.keys.values()) - {""} if add else set()
        with self.progress.track("vision features" if add else "tokens", len(self.keys)) as advance:
            encoded = encoded_ahead(list(self.keys), self.collator, self.workers)
            for key, sample in zip(self.keys.values(), encoded, strict=True):
                samples.append(_without_pixels(sample).owned())
                if key in missing:
                    missing.remove(key)
                    waiting[key] = sample.pictures
                if add and waiting and (len(waiting) == _BATCH or self._dtype is None):
                    self._compute(waiting, add, folder)
                advance(1)
            if add and waiting:
                self._compute(waiting, add, folder)
        return samples

    def _compute(self, waiting: dict[str, Batch], add: Add, folder: Path | None) -> None:
        """Run the encoder on the waiting pictures, and empty the list."""
        features = self._together(list(waiting.values())) or [self.tap.features(one) for one in waiting.values()]
        if self._dtype is None:
            self._dtype = self._storage_dtype(features[0])
            self._check_room(features[0].numel() * self._dtype.itemsize, folder)
        for key, tensor in zip(waiting, features, strict=True):
            add(key, tensor.to("cpu", self._dtype))
        waiting.clear()

    def _together(self, pictures: list[Batch]) -> list[torch.Tensor]:
        """Return the features of each sample's pictures by one run of the encoder; nothing where sizes differ."""
        if any(set(one) != {PIXELS} or one[PIXELS].ndim != 4 for one in pictures):
            return []
        if len({one[PIXELS].shape[1:] for one in pictures}) > 1:
            return []
        counts = [one[PIXELS].shape[0] for one in pictures]
        # Joined on the device: threads of several trainings that share a CPU wait for each other long.
        features = self.tap.features({PIXELS: torch.cat([one[PIXELS].to(self.tap.device) for one in pictures])})
        return list(features.split(counts)) if features.shape[0] == sum(counts) else []

    def _storage_dtype(self, features: torch.Tensor) -> torch.dtype:
        """Return the number format to store: half precision where the projector's output stays the same to the bit."""
        if self.half and features.dtype not in HALF and self.tap.same_in_half(features, self.half):
            return self.half
        return features.dtype

    def _check_room(self, picture_bytes: int, folder: Path | None) -> None:
        """Say how large the features of all pictures will be, and check that there is room."""
        pictures = len({sample.images for sample in self.keys if sample.images})
        size = pictures * picture_bytes
        self.progress.say(
            f"vision features of {pictures} pictures: about {size / 2**30:.2f} GiB in {folder or 'memory'},"
            f" {str(self._dtype).removeprefix('torch.')}"
        )
        check_room(size, folder)


def _without_pixels(encoded: Encoded) -> Encoded:
    """Return the sample with only the shape of its pixels."""
    if PIXELS not in encoded.pictures:
        return encoded
    rest = {name: value for name, value in encoded.pictures.items() if name != PIXELS}
    return Encoded(encoded.tokens, {**rest, SHAPES: torch.tensor([list(encoded.pictures[PIXELS].shape)])})

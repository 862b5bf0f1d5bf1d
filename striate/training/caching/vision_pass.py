"""One pass of a training set through the frozen vision encoder: every picture once, features to a store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.packing import Batch
from striate.data.samples import Sample
from striate.errors import ArtifactError
from striate.models.interventions.vision_feature_tap import PIXELS, VisionTap
from striate.progress import Progress
from striate.training.batching.prefetch import encoded_ahead
from striate.training.caching.tensor_store import check_room
from striate.training.numerical_agreement import moved
from striate.training.precision import HALF

SHAPES = "vision_shapes"
_TOGETHER = 16
Add = Callable[[str, torch.Tensor], None]
Item = tuple[Encoded, str]


class FeatureMaker:
    """Goes once over a training set: encodes every sample, and runs the encoder on every new picture.

    Attributes:
        samples: the training set, each sample once.
    """

    def __init__(
        self,
        tap: VisionTap,
        samples: Sequence[Sample],
        collator: Collator,
        workers: int,
        device: torch.device,
        half: torch.dtype | None,
        progress: Progress,
    ) -> None:
        """Keep what the pass needs."""
        self._tap, self._device, self._half, self._progress = tap, device, half, progress
        self.samples = list(dict.fromkeys(samples))
        self._pictures = len({sample.images for sample in self.samples if sample.images})
        self._prepare, self._workers = _Preparer(collator), workers
        self._dtype: torch.dtype | None = None

    def run(self, add: Add | None, known: Any, folder: Path | None) -> list[Item]:
        """Return the encoded samples in order, without pixels, and the keys of their pictures.

        Features of pictures that are not `known` go to `add`.

        Raises:
            ArtifactError: without `add`, a picture is not known; or there is no room for its features.
        """
        items: list[Item] = []
        waiting: dict[str, Batch] = {}
        label = "vision features" if add else "tokens"
        with self._progress.track(label, len(self.samples)) as advance:
            ahead = encoded_ahead(self.samples, self._prepare, self._workers)
            for sample, (key, item) in zip(self.samples, ahead, strict=True):
                items.append((_without_pixels(item).owned(), key))
                if key and key not in known and key not in waiting:
                    if add is None:
                        raise other_pictures(folder, sample)
                    waiting[key] = item.pictures
                    if len(waiting) == _TOGETHER or self._dtype is None:
                        self._compute(waiting, add, folder)
                advance(1)
            if waiting and add:
                self._compute(waiting, add, folder)
        return items

    def _compute(self, waiting: dict[str, Batch], add: Add, folder: Path | None) -> None:
        """Run the encoder on the waiting pictures, together where they have one size, and empty the list."""
        shapes = {tuple(pictures[PIXELS].shape[1:]) for pictures in waiting.values()}
        alike = all(set(pictures) == {PIXELS} and pictures[PIXELS].ndim == 4 for pictures in waiting.values())
        counts = [pictures[PIXELS].shape[0] for pictures in waiting.values()]
        found: list[torch.Tensor] = []
        if alike and len(shapes) == 1:
            # On the device: threads of several trainings that share a CPU wait for each other long.
            pixels = torch.cat([pictures[PIXELS].to(self._device) for pictures in waiting.values()])
            together = self._features({PIXELS: pixels})
            found = list(together.split(counts)) if together.shape[0] == sum(counts) else []
        found = found or [self._features(pictures) for pictures in waiting.values()]
        self._settle(found[0], folder)
        for key, features in zip(waiting, found, strict=True):
            add(key, features.to("cpu", self._dtype))
        waiting.clear()

    def _features(self, pictures: Batch) -> torch.Tensor:
        """Return the features of pictures."""
        return self._tap.features(moved(pictures, self._device))

    def _settle(self, features: torch.Tensor, folder: Path | None) -> None:
        """Choose the number format at the first picture, say how large all will be, and check that there is room."""
        if self._dtype is not None:
            return
        rounds = self._half is not None and features.dtype not in HALF
        halved = rounds and self._half is not None and self._tap.same_in_half(features, self._half)
        self._dtype = self._half if halved else features.dtype
        size = self._pictures * features.numel() * (2 if self._dtype in HALF else features.element_size())
        place = "memory" if folder is None else str(folder)
        self._progress.say(
            f"vision features of {self._pictures} pictures: about {size / 2**30:.2f} GiB in {place},"
            f" {str(self._dtype).removeprefix('torch.')}"
        )
        check_room(size, folder)


def _without_pixels(item: Encoded) -> Encoded:
    """Return the sample with only the shape of its pixels."""
    if PIXELS not in item.pictures:
        return item
    rest = {name: value for name, value in item.pictures.items() if name != PIXELS}
    return Encoded(item.tokens, {**rest, SHAPES: torch.tensor([list(item.pictures[PIXELS].shape)])})


@dataclass(frozen=True)
class _Preparer:
    """Encodes one sample in a worker, and names its pictures by their content."""

    collator: Collator

    def __call__(self, sample: Sample) -> tuple[str, Encoded]:
        """Return the key of its pictures, empty if it has none, and the sample, encoded."""
        [item] = self.collator.encode_each([sample])
        return key_of(sample), item


def key_of(sample: Sample) -> str:
    """Return the name of a sample's pictures by their content; empty if it has none."""
    digest = hashlib.sha256()
    for path in sample.images:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32] if sample.images else ""


def other_pictures(folder: Path | None, sample: Sample) -> ArtifactError:
    """Return the error for features on disk that lack a picture."""
    return ArtifactError(
        f"{folder} has no features of the picture of sample {sample.id!r}",
        "features of the training pictures as they are now",
        "remove that folder: it is made anew",
    )

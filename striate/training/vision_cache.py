"""Train on kept vision features: each picture goes through the frozen encoder once, each text is tokenised once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from striate.config import MachineSection
from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.packing import Batch
from striate.data.samples import Sample
from striate.errors import ArtifactError
from striate.models.eval_mode import evaluating
from striate.models.vision_tap import PIXELS, VisionTap, uncached
from striate.progress import Progress
from striate.training.encoded_ahead import encoded_ahead
from striate.training.fingerprints import fingerprint_of_vision
from striate.training.kept import KeptCollator
from striate.training.kept_store import DiskStore, MemoryStore, check_room, write_once
from striate.training.modes import HALF
from striate.training.processes import Processes
from striate.training.rounding import hidden_states, moved, unexplained

FEATURES, SHAPES = "vision_features", "vision_shapes"
_TOGETHER, _COMPARED = 16, 4
_TOLERANCE, _TF32_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-3, 5e-2
Add = Callable[[str, torch.Tensor], None]
Items = dict[Sample, tuple[Encoded, str]]


class FeatureCollator(KeptCollator):
    """Gives samples that were encoded once, with their pictures' features in the place of the pixels."""

    def with_kept(self, item: Encoded, kept: torch.Tensor) -> Encoded:
        """Return the sample with the features of its pictures."""
        return Encoded(item.tokens, {**item.pictures, FEATURES: kept})


@dataclass(frozen=True)
class VisionCache:
    """A training set with its features, and how its model takes them."""

    tap: VisionTap
    collator: FeatureCollator

    @contextmanager
    def serving(self, batch: Batch) -> Iterator[Batch]:
        """Yield the batch as the model takes it, and let its features stand for its pictures in the block."""
        rest = {name: value for name, value in batch.items() if name not in (FEATURES, SHAPES)}
        if FEATURES not in batch:
            yield rest
            return
        shapes = batch[SHAPES].cpu()
        shape = [int(shapes[:, 0].sum()), *shapes[:, 1:].max(dim=0).values.tolist()]
        # Pixels that are only counted: one value, seen everywhere.
        rest[PIXELS] = torch.ones((), device=batch["input_ids"].device).expand(shape)
        with self.tap.serving(batch[FEATURES]):
            yield rest


@dataclass(frozen=True)
class _Preparer:
    """Encodes one sample in a worker, and names its pictures by their content."""

    collator: Collator

    def __call__(self, sample: Sample) -> tuple[tuple[Sample, str], Encoded]:
        """Return the sample and the key of its pictures, empty if it has none; and the sample, encoded."""
        digest = hashlib.sha256()
        for path in sample.images:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        [item] = self.collator.encode_each([sample])
        return (sample, digest.hexdigest()[:32] if sample.images else ""), item


def keep_features(
    model: nn.Module,
    processor: Any,
    samples: Sequence[Sample],
    collator: Collator,
    machine: MachineSection,
    *,
    half: torch.dtype | None,
    folder: Path,
    progress: Progress,
) -> VisionCache | None:
    """Return the training set with its vision features, computed by the model's own encoder; None if that is off.

    Args:
        model: as it trains, on its device; its vision encoder frozen.
        processor: its processor, which makes pixels of pictures.
        samples: the training set.
        collator: encodes it.
        machine: says where features are kept, and how many workers read pictures.
        half: the half-precision type that the model computes in, if any.
        folder: where features on disk are, one folder for each encoder and set of pictures.
        progress: where to show it.

    Raises:
        ModelError: features of this model can't be kept, and why.
        ArtifactError: there is no room for them, or those on disk are damaged.
    """
    if machine.cache_vision == "off" or not any(sample.images for sample in samples):
        return None
    tap, device = VisionTap(model), next(model.parameters()).device
    maker = _Maker(tap, samples, collator, machine.workers, device, half, progress)
    random_states = torch.random.fork_rng(devices=[])
    mixed = torch.autocast(device.type, half or torch.bfloat16, enabled=bool(half))
    with random_states, evaluating(model), torch.no_grad(), mixed:
        if machine.cache_vision == "memory":
            memory = MemoryStore()
            items = maker.run(memory.__setitem__, memory, None)
            cache = VisionCache(tap, FeatureCollator(collator, items, memory))
        else:
            place = folder / fingerprint_of_vision(model, processor, samples, half)
            written: Items = {}
            made = Processes.launched().first(
                lambda: write_once(place, lambda to: written.update(maker.run(to.add, to.places, place)))
            )
            progress.say(f"vision features {'written to' if made else 'read from'} {place}")
            stored = DiskStore(place)
            # Who wrote the features has encoded all samples by then.
            cache = VisionCache(tap, FeatureCollator(collator, written or maker.run(None, stored, place), stored))
        pictured = [sample for sample in samples if sample.images][:_COMPARED]
        progress.say(_compare(model, cache, collator, pictured, device))
    return cache


class _Maker:
    """Goes once over a training set: encodes every sample, and runs the encoder on every new picture."""

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
        self._samples = list(dict.fromkeys(samples))
        self._pictures = len({sample.images for sample in self._samples if sample.images})
        self._prepare, self._workers = _Preparer(collator), workers
        self._dtype: torch.dtype | None = None

    def run(self, add: Add | None, known: Any, folder: Path | None) -> Items:
        """Return the encoded samples, without pixels; features of pictures that are not `known` go to `add`.

        Raises:
            ArtifactError: without `add`, a picture is not known; or there is no room for its features.
        """
        items: Items = {}
        waiting: dict[str, Batch] = {}
        label = "vision features" if add else "tokens"
        with self._progress.track(label, len(self._samples)) as advance:
            for (sample, key), item in encoded_ahead(self._samples, self._prepare, self._workers):
                items[sample] = (_without_pixels(item).owned(), key)
                if key and key not in known and key not in waiting:
                    if add is None:
                        raise _other_pictures(folder, sample)
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
            pixels = torch.cat([pictures[PIXELS] for pictures in waiting.values()])
            together = self._features({PIXELS: pixels})
            found = list(together.split(counts)) if together.shape[0] == sum(counts) else []
        found = found or [self._features(pictures) for pictures in waiting.values()]
        self._settle(found[0], folder)
        for key, features in zip(waiting, found, strict=True):
            add(key, features.to("cpu", self._dtype))
        waiting.clear()

    def _features(self, pictures: Batch) -> torch.Tensor:
        """Return the features of pictures of the CPU."""
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


def _compare(
    model: nn.Module, cache: VisionCache, collator: Collator, samples: Sequence[Sample], device: torch.device
) -> str:
    """Return how near hidden states on kept features come to those on pictures; refuse the model if they don't."""
    # Also where all features were on disk the tap must see once what the encoder gives.
    cache.tap.features(moved(collator.encode_each(samples[:1])[0].pictures, device))
    real = hidden_states(model, moved(collator(samples), device))
    try:
        with cache.serving(moved(cache.collator(samples), device)) as batch:
            kept = hidden_states(model, batch)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise uncached(f"its forward pass fails on kept features: {str(error).splitlines()[0]}") from error
    difference = float((kept - real).norm() / real.norm())
    half = any(parameter.dtype in HALF for parameter in model.parameters())
    # Convolutions on CUDA round float32 to ten bits unless told otherwise, and not alike at every batch size.
    rounded = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    tolerance = _HALF_TOLERANCE if half else _TF32_TOLERANCE if rounded else _TOLERANCE
    if by := unexplained(difference, tolerance, model, collator, lambda: collator.encode_each(samples), device):
        raise uncached(f"kept features change the hidden states of the first pictures, {by}")
    return f"vision features: {len(samples)} samples get the hidden states of their pictures (within {difference:.1e})"


def _other_pictures(folder: Path | None, sample: Sample) -> ArtifactError:
    """Return the error for features on disk that lack a picture."""
    return ArtifactError(
        f"{folder} has no features of the picture of sample {sample.id!r}",
        "features of the training pictures as they are now",
        "remove that folder: it is made anew",
    )

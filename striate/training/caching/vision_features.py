"""Train on kept vision features: each picture goes through the frozen encoder once, each text is tokenised once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from striate.config import MachineSection
from striate.data.collate import Collator
from striate.data.packing import Batch
from striate.data.samples import Sample
from striate.models.interventions.eval_mode import evaluating
from striate.models.interventions.vision_feature_tap import PIXELS, VisionTap, uncached
from striate.progress import Progress
from striate.storage.atomic import cache_folder
from striate.training.caching.cache_keys import fingerprint_of_tokens, fingerprint_of_vision
from striate.training.caching.collator import FEATURES, FeatureCollator
from striate.training.caching.tensor_store import DiskStore, DiskWriter, MemoryStore, write_once
from striate.training.caching.token_store import items_once, load_items, save_items
from striate.training.caching.vision_pass import SHAPES, FeatureMaker, Item, key_of, other_pictures
from striate.training.distributed.ranks import Processes
from striate.training.numerical_agreement import hidden_states, moved, unexplained
from striate.training.precision import HALF

_COMPARED = 4
_TOLERANCE, _TF32_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-3, 5e-2
Items = dict[Sample, Item]


@dataclass(frozen=True)
class CachedFeatures:
    """A training set with its vision features, and how its model takes them."""

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


def cached_features(
    model: nn.Module,
    processor: Any,
    samples: Sequence[Sample],
    collator: Collator,
    machine: MachineSection,
    *,
    half: torch.dtype | None,
    progress: Progress,
) -> CachedFeatures | None:
    """Return the training set with its vision features, computed by the model's own encoder; None if that is off.

    Args:
        model: as it trains, on its device; its vision encoder frozen.
        processor: its processor, which makes pixels of pictures.
        samples: the training set.
        collator: encodes it.
        machine: says where features are kept, and how many workers read pictures.
        half: the half-precision type that the model computes in, if any.
        progress: where to show it.

    Raises:
        ModelError: features of this model can't be kept, and why.
        ArtifactError: there is no room for them, or those on disk are damaged.
    """
    if machine.cache_vision == "off" or not any(sample.images for sample in samples):
        return None
    tap, device = VisionTap(model), next(model.parameters()).device
    maker = FeatureMaker(tap, samples, collator, machine.workers, device, half, progress)
    random_states = torch.random.fork_rng(devices=[])
    mixed = torch.autocast(device.type, half or torch.bfloat16, enabled=bool(half))
    with random_states, evaluating(model), torch.no_grad(), mixed:
        if machine.cache_vision == "memory":
            memory = MemoryStore()
            items = maker.run(memory.__setitem__, memory, None)
            known = dict(zip(maker.samples, items, strict=True))
            cache = CachedFeatures(tap, FeatureCollator(collator, known, memory))
        else:
            folder = Path(machine.cache_folder) if machine.cache_folder else cache_folder() / "vision"
            place = folder / fingerprint_of_vision(model, processor, samples, half)
            tokens = fingerprint_of_tokens(processor, maker.samples, collator.max_length)
            made = Processes.launched().first(lambda: _write(place, tokens, maker))
            progress.say(f"vision features {'written to' if made else 'read from'} {place}")
            stored = DiskStore(place)
            cache = CachedFeatures(tap, FeatureCollator(collator, _read(place, tokens, maker.samples, stored), stored))
        pictured = [sample for sample in samples if sample.images][:_COMPARED]
        progress.say(_compare(model, cache, collator, pictured, device))
    return cache


def _write(place: Path, tokens: str, maker: FeatureMaker) -> bool:
    """Write what `place` lacks of features and tokens; return whether it lacked features."""

    def whole(to: DiskWriter) -> None:
        # Who makes the features encodes all samples.
        items = maker.run(to.add, to.places, place)
        (to.folder / tokens).mkdir()
        save_items(to.folder / tokens, [item for item, _ in items])

    made = write_once(place, whole)
    items_once(place / tokens, lambda: [item for item, _ in maker.run(None, DiskStore(place), place)])
    return made


def _read(place: Path, tokens: str, samples: Sequence[Sample], stored: DiskStore) -> Items:
    """Return the encoded samples of `place` with the keys of their pictures, whose files are read to make sure.

    Raises:
        ArtifactError: the samples are damaged, or a picture is another one than it was.
    """
    with ThreadPoolExecutor() as pool:
        keys = list(pool.map(key_of, samples))
    for sample, key in zip(samples, keys, strict=True):
        if key and key not in stored:
            raise other_pictures(place, sample)
    return dict(zip(samples, zip(load_items(place / tokens), keys, strict=True), strict=True))


def _compare(
    model: nn.Module, cache: CachedFeatures, collator: Collator, samples: Sequence[Sample], device: torch.device
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

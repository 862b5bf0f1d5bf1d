"""Caches vision features: each picture goes through the frozen encoder once, each text is tokenised once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from striate.config import MachineSection
from striate.data.checks.broken_samples import usable
from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.packing import Batch
from striate.data.samples import Sample
from striate.errors import first_line
from striate.models.interventions.eval_mode import evaluating
from striate.models.interventions.vision_feature_tap import PIXELS, VisionTap, uncached
from striate.progress import Progress
from striate.storage.atomic import cache_folder
from striate.training.caching.cache_keys import features_key, picture_keys, tokens_key
from striate.training.caching.collator import FEATURES, FeatureCollator
from striate.training.caching.tensor_store import StoredTensors, TensorWriter, write_once
from striate.training.caching.vision_pass import VisionPass
from striate.training.distributed.ranks import Ranks
from striate.training.inputs.step_inputs import SHAPES, StepInput
from striate.training.numerical_agreement import hidden_states, to_device, unexplained_difference
from striate.training.precision import HALF

_COMPARED = 4
_TOLERANCE, _TF32_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-3, 5e-2


@dataclass(frozen=True)
class CachedFeatures(StepInput):
    """A training set with its vision features, and how its model takes them: a step input."""

    tap: VisionTap
    collator: FeatureCollator

    @contextmanager
    def serving(self, batch: Batch, on_cpu: Batch) -> Iterator[Batch]:
        """Yield the batch as the model takes it, and let its features stand for its pictures in the block."""
        rest = {name: value for name, value in batch.items() if name not in (FEATURES, SHAPES)}
        if FEATURES not in batch:
            yield rest
            return
        shapes = on_cpu[SHAPES]
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
    held_out: Sequence[Sample] = (),
) -> CachedFeatures | None:
    """Return the training set with its vision features, computed by the model's own encoder; None if that is off.

    Args:
        model: as it trains, on its device; its vision encoder frozen.
        processor: its processor, which makes pixels of pictures.
        samples: the training set.
        collator: encodes it.
        machine: says where features are cached, and how many workers read pictures.
        half: the half-precision type that the model computes in, if any.
        progress: where to show it.
        held_out: samples whose features are stored on disk too: another seed, which holds out others, trains on them.

    Raises:
        ModelError: features of this model can't be cached, and why.
        DataError: a picture can't be read.
        ArtifactError: there is no room for them, or those on disk are damaged.
    """
    if machine.cache_vision == "off" or not any(sample.images for sample in samples):
        return None
    samples = usable(collator, samples)
    others = usable(collator, held_out) if held_out and machine.cache_vision == "disk" else []
    # In an order of their own, the same in every process: runs that divide the same samples otherwise find them.
    stored = sorted(
        dict.fromkeys([*samples, *others]), key=lambda sample: (sample.id, repr(sample.messages), sample.task)
    )
    tap, keys = VisionTap(model), picture_keys(stored)
    vision_pass = VisionPass(tap, keys, collator, machine.workers, half, progress)
    mixed = torch.autocast(tap.device.type, half or torch.bfloat16, enabled=bool(half))
    with torch.random.fork_rng(devices=[]), evaluating(model), torch.no_grad(), mixed:
        features: Mapping[str, torch.Tensor]
        if machine.cache_vision == "memory":
            in_memory: dict[str, torch.Tensor] = {}
            features, encoded = in_memory, vision_pass.run(in_memory.__setitem__, None)
        else:
            folder = Path(machine.cache_folder) if machine.cache_folder else cache_folder() / "vision"
            place = folder / features_key(model, processor, keys, half)
            tokens = place / tokens_key(processor, keys, collator.max_length)
            written = Ranks.launched().on_main(lambda: _write(place, tokens, vision_pass))
            progress.say(f"vision features {'written to' if written else 'read from'} {place}")
            features, encoded = StoredTensors(place), _read_samples(tokens, len(keys))
        cached_samples = {sample: (one, keys[sample]) for sample, one in zip(keys, encoded, strict=True)}
        cached = CachedFeatures(tap, FeatureCollator(collator, cached_samples, features))
        progress.say(_compare(model, cached, [sample for sample in samples if sample.images][:_COMPARED]))
    return cached


def _write(place: Path, tokens: Path, vision_pass: VisionPass) -> bool:
    """Write the features of `place` and the samples of `tokens` if missing; return whether features were."""
    encoded: list[Encoded] = []

    def wait() -> None:
        vision_pass.progress.say("vision features: another run makes them")

    written = write_once(place, lambda writer: encoded.extend(vision_pass.run(writer.add, place)), wait)
    write_once(tokens, lambda writer: _write_samples(writer, encoded or vision_pass.run(None, place)), wait)
    return written


def _write_samples(writer: TensorWriter, samples: Sequence[Encoded]) -> None:
    for index, sample in enumerate(samples):
        for part, tensors in (("tokens", sample.tokens), ("pictures", sample.pictures)):
            for name, tensor in tensors.items():
                writer.add(f"{index} {part} {name}", tensor)


def _read_samples(folder: Path, count: int) -> list[Encoded]:
    samples = [Encoded({}, {}) for _ in range(count)]
    for key, tensor in StoredTensors(folder).items():
        index, part, name = key.split(" ", 2)
        getattr(samples[int(index)], part)[name] = tensor
    return samples


def _compare(model: nn.Module, cached: CachedFeatures, samples: Sequence[Sample]) -> str:
    """Return how near hidden states on cached features come to those on pictures; refuse the model if they don't."""
    collator, device = cached.collator.plain, cached.tap.device
    # Also where all features were on disk the tap must see once what the encoder gives.
    cached.tap.features(collator.encode_each(samples[:1])[0].pictures)
    real = hidden_states(model, to_device(collator(samples), device))
    try:
        on_cpu = cached.collator(samples)
        with cached.serving(to_device(on_cpu, device), on_cpu) as batch:
            served = hidden_states(model, batch)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise uncached(f"its forward pass fails on cached features: {first_line(error)}") from error
    difference = float((served - real).norm() / real.norm())
    half = any(parameter.dtype in HALF for parameter in model.parameters())
    # Convolutions on CUDA round float32 to ten bits unless told otherwise, and not alike at every batch size.
    rounded = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    tolerance = _HALF_TOLERANCE if half else _TF32_TOLERANCE if rounded else _TOLERANCE
    if by := unexplained_difference(difference, tolerance, model, collator, lambda: collator.encode_each(samples)):
        raise uncached(f"cached features change the hidden states of the first pictures, {by}")
    return f"vision features: {len(samples)} samples get the hidden states of their pictures (within {difference:.1e})"

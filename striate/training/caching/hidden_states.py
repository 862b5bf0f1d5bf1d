"""Train from the region on: what frozen layers below it make of each sample is computed once, and kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from striate.artifacts import Region
from striate.config import MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.packing import Batch
from striate.data.samples import Sample
from striate.errors import TrainingError
from striate.models.interventions.eval_mode import evaluating
from striate.models.interventions.hidden_state_tap import HiddenTap, unkept, without_pictures
from striate.models.structure.anatomy import decoder_layers, unwrap
from striate.progress import Progress
from striate.training.caching.cache_keys import fingerprint_of_hidden
from striate.training.caching.collator import KeptCollator
from striate.training.caching.hidden_pass import HiddenMaker
from striate.training.caching.tensor_store import HIDDEN_STATES, DiskStore, MemoryStore, Store, write_once
from striate.training.caching.token_store import load_items
from striate.training.distributed.ranks import Processes
from striate.training.distributed.sharding import sharding
from striate.training.numerical_agreement import hidden_states, moved, unexplained
from striate.training.precision import HALF, FrozenModules

HIDDEN = "kept_hidden_states"
_COMPARED = 4
# Shares of the size of a hidden state after the last layer. States of the very same batch leave nothing to round.
_SAME, _SAME_HALF = 1e-4, 1e-3
_TOLERANCE, _TF32_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-3, 5e-2
# What a model raises that can't do without its pictures or its lower layers.
_MISSING = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError)


class HiddenCollator(KeptCollator):
    """Gives samples that were encoded once, with the hidden states of their tokens in the place of pictures."""

    def with_kept(self, item: Encoded, kept: torch.Tensor) -> Encoded:
        """Return the sample with its hidden states (1, T, D): as a tensor of its tokens they are padded and packed."""
        return Encoded({**item.tokens, HIDDEN: kept.unsqueeze(0)}, item.pictures)


@dataclass(frozen=True)
class HiddenCache:
    """A training set with the hidden states before the region, and how its model goes on from them."""

    tap: HiddenTap
    collator: HiddenCollator

    @contextmanager
    def serving(self, batch: Batch) -> Iterator[Batch]:
        """Yield the batch as the model takes it; in the block the model begins at the region."""
        with self.tap.serving(batch[HIDDEN]):
            yield {name: value for name, value in batch.items() if name != HIDDEN}


def keep_hidden(
    model: nn.Module,
    processor: Any,
    region: Region,
    samples: Sequence[Sample],
    collator: Collator,
    config: TrainSection,
    machine: MachineSection,
    *,
    half: torch.dtype | None,
    folder: Path,
    progress: Progress,
) -> HiddenCache | None:
    """Return the training set with the hidden states before the region's first layer; None if that is off.

    Args:
        model: as it trains, on its device; all below the region frozen.
        processor: its processor.
        region: which layers train.
        samples: the training set.
        collator: encodes it.
        config: how the region trains.
        machine: says where hidden states are kept, and how many samples go through the model together.
        half: the half-precision type that the model computes in, if any; hidden states are kept in it.
        folder: where hidden states on disk are, one folder for each model, first layer and training set.
        progress: where to show it.

    Raises:
        TrainingError: the projector trains, or the weights are sharded.
        ModelError: hidden states of this model can't be kept, and why.
        ArtifactError: there is no room for them, or those on disk are damaged.
    """
    if machine.cache_hidden == "off":
        return None
    _check_settings(config)
    layer, device = region.layers[0], next(model.parameters()).device
    tap = HiddenTap(model, layer)
    _check_dropout(model, layer)
    mixed = torch.autocast(device.type, half or torch.bfloat16, enabled=bool(half))
    with torch.random.fork_rng(devices=[]), evaluating(model), torch.no_grad(), mixed:
        few = _few(samples)
        width = _check_same(model, tap, moved(collator(few), device))
        maker = HiddenMaker(tap, samples, collator, machine, config.packing, half, width, progress)
        store: Store
        if machine.cache_hidden == "memory":
            memory = store = MemoryStore()
            items = maker.run(memory.__setitem__, None)
        else:
            name = fingerprint_of_hidden(model, processor, maker.samples, half, layer, collator.max_length)
            place = folder / name
            made = Processes.launched().first(lambda: write_once(place, maker.write))
            progress.say(f"hidden states {'written to' if made else 'read from'} {place}")
            items, store = load_items(place), DiskStore(place, HIDDEN_STATES)
        known = {
            sample: (item, str(index)) for index, (sample, item) in enumerate(zip(maker.samples, items, strict=True))
        }
        cache = HiddenCache(tap, HiddenCollator(collator, known, store))
        progress.say(_compare(model, cache, collator, few, device))
    return cache


def _few(samples: Sequence[Sample]) -> list[Sample]:
    """Return a few samples to compare, one without a picture among them if there is one."""
    bare = [sample for sample in samples if not sample.images][:1]
    return [*[sample for sample in samples if sample.images][: _COMPARED - len(bare)], *bare]


def _check_settings(config: TrainSection) -> None:
    """Raise for settings under which hidden states change, or can't be put in."""
    if config.train_projector:
        raise TrainingError(
            "machine.cache_hidden keeps what comes out of the projector, and train.train_projector trains it",
            "a frozen projector, or kept vision features (machine.cache_vision)",
            "use --set train.train_projector=false, or machine.cache_vision in the place of machine.cache_hidden",
        )
    if sharding():
        raise TrainingError(
            f"machine.cache_hidden with weights sharded by {sharding()}",
            "every process with all weights (configs/accelerate/ddp.yaml)",
            "use that, or machine.cache_hidden=off",
        )


def _check_dropout(model: nn.Module, layer: int) -> None:
    """Raise if training would drop values at random before the layer."""
    above = {id(one) for part in list(decoder_layers(model))[layer:] for one in part.modules()}
    with evaluating(model):
        model.train()
        FrozenModules(model, checkpointing=False).set_eval()
        dropping = [
            name
            for name, one in unwrap(model).named_modules()
            if isinstance(one, nn.modules.dropout._DropoutNd) and one.training and one.p and id(one) not in above
        ]
        model.eval()
    if dropping:
        raise unkept(f"{dropping[0]} drops values at random while training")


def _check_same(model: nn.Module, tap: HiddenTap, batch: Batch) -> int:
    """Return the size of a hidden state; raise unless the model goes on from those of `batch` as if it came there."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    real = hidden_states(model, inputs)
    states = tap.states(inputs)
    with tap.serving(states):
        kept = _tried(model, without_pictures(inputs, tuple(inputs["input_ids"].shape)))
    difference = _difference(kept, real, inputs)
    if not difference <= (_SAME_HALF if states.dtype in HALF else _SAME):
        raise unkept(f"run on from layer {tap.layer}, the model's last hidden states differ, by {difference:.1%}")
    return states.shape[-1]


def _compare(
    model: nn.Module, cache: HiddenCache, collator: Collator, samples: Sequence[Sample], device: torch.device
) -> str:
    """Return how near kept hidden states come to those of the whole model; refuse to train on them if they don't."""
    batch = moved(collator(samples), device)
    real = hidden_states(model, batch)
    with cache.serving(moved(cache.collator(samples), device)) as served:
        kept = _tried(model, served)
    difference = _difference(kept, real, batch)
    half = any(parameter.dtype in HALF for parameter in model.parameters())
    # Convolutions on CUDA round float32 to ten bits unless told otherwise, and not alike at every batch size.
    rounded = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    tolerance = _HALF_TOLERANCE if half else _TF32_TOLERANCE if rounded else _TOLERANCE
    if by := unexplained(difference, tolerance, model, collator, lambda: collator.encode_each(samples), device):
        raise unkept(f"kept hidden states change the last ones of the first samples, {by}")
    return (
        f"hidden states before layer {cache.tap.layer}: {len(samples)} samples get the last hidden states that the"
        f" whole model gives them (within {difference:.1e})"
    )


def _tried(model: nn.Module, inputs: Batch) -> torch.Tensor:
    """Return the last hidden states; a model that asks for what is left out is refused."""
    try:
        return hidden_states(model, inputs)
    except torch.OutOfMemoryError:
        raise
    except _MISSING as error:
        raise unkept(f"its forward pass fails on them: {(str(error).splitlines() or [''])[0]}") from error


def _difference(found: torch.Tensor, expected: torch.Tensor, batch: Batch) -> float:
    """Return ||found - expected|| / ||expected|| over the tokens that are not padding."""
    real = batch["attention_mask"].bool() if "attention_mask" in batch else slice(None)
    return float((found[real] - expected[real]).norm() / expected[real].norm())

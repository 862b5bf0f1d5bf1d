"""Which part of a model is not run again in every step, because what it gives is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from striate.config import MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.errors import TrainingError
from striate.progress import Progress
from striate.storage.atomic import cache_folder
from striate.training.caching.collator import Kept
from striate.training.caching.hidden_states import keep_hidden
from striate.training.caching.vision_features import keep_features
from striate.training.setup import Opened


def keep(
    ready: Opened,
    processor: Any,
    samples: Sequence[Sample],
    collator: Collator,
    config: TrainSection,
    machine: MachineSection,
    progress: Progress,
) -> Kept | None:
    """Return the training set with its hidden states or its vision features, as `machine` asks; None for neither.

    Raises:
        TrainingError: both are asked for, or hidden states that training changes.
        ModelError: those of this model can't be kept, and why.
        ArtifactError: there is no room for them, or those on disk are damaged.
    """
    if "off" not in (machine.cache_hidden, machine.cache_vision):
        raise TrainingError(
            "machine.cache_hidden and machine.cache_vision are both set: on hidden states no picture is read",
            "one of them",
            "use machine.cache_vision=off",
        )
    folder = Path(machine.cache_folder) if machine.cache_folder else None
    half = ready.weights.dtype
    if machine.cache_hidden == "off":
        place = folder or cache_folder() / "vision"
        return keep_features(
            ready.model, processor, samples, collator, machine, half=half, folder=place, progress=progress
        )
    place = folder or cache_folder() / "hidden"
    return keep_hidden(
        ready.model,
        processor,
        ready.region,
        samples,
        collator,
        config,
        machine,
        half=half,
        folder=place,
        progress=progress,
    )

"""What two sessions of one training must share, so that the second may go on from the first one's checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from striate.artifacts import Region
from striate.config import TrainSection
from striate.data.samples import Sample
from striate.training.approximations import layers_beside

# How often a checkpoint is written does not change what is learned.
_FREE_SETTINGS = {"save_steps"}


def identity(
    region: Region, config: TrainSection, samples: Sequence[Sample], seed: int, base_path: str
) -> dict[str, Any]:
    """Return what two sessions of one training must share, by name."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.id, sample.messages, [path.name for path in sample.images])).encode())
    settings = {f"train.{key}": value for key, value in config.model_dump(mode="json", exclude=_FREE_SETTINGS).items()}
    return {
        **settings,
        "region": list(region.layers),
        **layers_beside(region, config),
        "num_layers": region.num_layers,
        "samples": len(samples),
        "data": digest.hexdigest(),
        "seed": seed,
        "model": base_path,
    }

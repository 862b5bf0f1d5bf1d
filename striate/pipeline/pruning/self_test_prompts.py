"""What a pruned model is asked after it was saved: prompts of the run's own data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.config import RunConfig
from striate.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from striate.data.collate import Collator
    from striate.data.samples import Sample

SAMPLES = 2
# Of which broken ones are left out.
_DRAWN = 64


def self_test_prompts(processor: Any, config: RunConfig, train: Sequence[Path]) -> dict[str, Tensor]:
    """Return left-padded prompts of training samples: a saved model and the one in memory are compared by them.

    Args:
        processor: the model's.
        config: of the run.
        train: the training data's files or folders.
    """
    from striate.data.collate import Collator
    from striate.data.pictures import PictureLimits
    from striate.data.reading import read_many
    from striate.data.sources.source_options import SourceOptions

    limits, options = PictureLimits.of(config.machine), SourceOptions.of(config.data)
    collator = Collator(processor, config.train.max_length, train=False, limits=limits)
    if config.data.broken != "skip":
        return collator.encode_prompts(read_many(train, SAMPLES, config.seed, options))
    return collator.encode_prompts(_usable(collator, read_many(train, _DRAWN, config.seed, options)))


def _usable(collator: Collator, samples: Sequence[Sample]) -> list[Sample]:
    """Return the first samples whose prompts can be encoded; all, of which each says why not, where none can."""
    found: list[Sample] = []
    for sample in samples:
        with suppress(DataError):
            collator.encode_prompts([sample])
            found.append(sample)
        if len(found) == SAMPLES:
            break
    return found or list(samples)

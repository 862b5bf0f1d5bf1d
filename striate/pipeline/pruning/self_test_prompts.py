"""What a pruned model is asked after it was saved: prompts of the run's own data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 2


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

    limits = PictureLimits.of(config.machine)
    collator = Collator(processor, config.train.max_length, train=False, limits=limits)
    return collator.encode_prompts(read_many(train, SAMPLES, config.seed, SourceOptions.of(config.data)))

"""Gradient norm and Fisher information by decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from striate.models.anatomy import Anatomy
from striate.progress import Advance
from striate.scorers.batches import Batches
from striate.scorers.kinds import LayerScorer
from striate.scorers.sums import PartSums


def run_gradients(
    core: Any, anatomy: Anatomy, batches: Batches, scorers: Sequence[LayerScorer], advance: Advance
) -> dict[str, dict[str, PartSums]]:
    """Return the sums of each scorer whose source is `gradients`, by name and part, samples in their order.

    One forward and backward pass a sample, whatever the batch size. Call it outside `torch.no_grad()`.
    """
    raise NotImplementedError

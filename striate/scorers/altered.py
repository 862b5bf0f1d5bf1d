"""Scorers that alter one decoder layer and look at the answer: knock-out and ShortV's layer contribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from striate.models.anatomy import Anatomy
from striate.progress import Advance
from striate.scorers.batches import Batches
from striate.scorers.kinds import LayerScorer
from striate.scorers.sums import PartSums


def run_altered(
    core: Any, anatomy: Anatomy, batches: Batches, scorers: Sequence[LayerScorer], advance: Advance
) -> dict[str, dict[str, PartSums]]:
    """Return the sums of each scorer whose source is `altered layers`, by name and part, samples in their order.

    Args:
        core: an LVLM in eval mode, without wrappers.
        anatomy: its parts.
        batches: training batches, answers labelled.
        scorers: those to run; all of them share one plain forward pass a batch.
        advance: hears of samples that are done.
    """
    raise NotImplementedError

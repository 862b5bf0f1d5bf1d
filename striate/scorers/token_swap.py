"""Image-token swap: which layer reads the attribute in which two pictures differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from striate.models.anatomy import Anatomy
from striate.progress import Advance
from striate.scorers.kinds import LayerScorer
from striate.scorers.sums import PartSums


def run_pairs(
    core: Any,
    processor: Any,
    anatomy: Anatomy,
    scorers: Sequence[LayerScorer],
    count: int,
    seed: int,
    advance: Advance,
    batch_size: int = 8,
) -> dict[str, dict[str, PartSums]]:
    """Return the sums of each scorer whose source is `picture pairs`, by name and attribute, one row a pair.

    Args:
        core: an LVLM in eval mode, without wrappers.
        processor: its processor.
        anatomy: its parts.
        scorers: those to run.
        count: pairs of each attribute (`picture_pairs.ATTRIBUTES`).
        seed: of the pictures.
        advance: hears of pairs that are done: `count` times the number of attributes in all.
        batch_size: pairs in one batch; each takes four sequences.
    """
    raise NotImplementedError

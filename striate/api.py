"""Python calls that differ from a stage's own: a stage returns records, these return what a notebook wants."""

from __future__ import annotations

from torch import nn

from striate.artifacts import Region, Scores
from striate.stages import prune as stage


def prune(
    model: nn.Module, region: Region, *, remove: int, scores: Scores | None = None, scorer: str | None = None
) -> nn.Module:
    """Return `model`, in place, without its `remove` least important decoder layers outside `region`.

    The result is an ordinary model: `save_pretrained` writes a checkpoint that loads without striate. See
    `striate.stages.prune.prune` for arguments and errors.
    """
    return stage.prune(model, region, remove, scores, scorer)[0]

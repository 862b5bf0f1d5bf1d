"""Python calls that differ from a stage's own: a stage returns records, these return what a notebook wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from striate.artifacts import Region, Scores
from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.errors import ConfigError
from striate.pruning.greedy_ranking import MEASURES, Question, calibration, rank_greedily
from striate.pruning.removal import layers_to_remove
from striate.stages import prune as stage

_MAX_LENGTH, _BATCH = 2048, 8


def prune(
    model: nn.Module,
    region: Region,
    *,
    remove: int | str,
    scores: Scores | None = None,
    scorer: str | None = None,
    samples: Sequence[Sample] | None = None,
    processor: Any = None,
) -> nn.Module:
    """Return `model`, in place, without its `remove` least important decoder layers outside `region`.

    With `samples`, layers go one after the other by what the model's own answers lose, each candidate asked again after
    every cut (`answer-loss`, or `scorer="answer-accuracy"`); else `scores` rank them. The result is an ordinary model:
    `save_pretrained` writes a checkpoint that loads without striate. See `striate.stages.prune.prune` for errors.

    Args:
        model: an LVLM without adapters (merge them first).
        region: layers that stay.
        remove: how many of the others go, or a percentage of all layers such as `25%`.
        scores: of `striate.analyze`.
        scorer: which of `scores`, or what is asked of `samples`.
        samples: calibration samples with answers, best held out from training.
        processor: the model's, needed with `samples`.
    """
    count = layers_to_remove(remove, region.num_layers)
    if samples is None:
        return stage.prune(model, region, count, scores, scorer)[0]
    name = scorer or "answer-loss"
    if scores is not None or name not in MEASURES or processor is None:
        given = "scores beside samples" if scores is not None else f"scorer {name!r} and processor {processor!r}"
        raise ConfigError(
            f"samples to rank layers by, with {given}",
            f"samples with a processor and scorer {' or '.join(MEASURES)}, or scores",
            "pass processor=..., and leave scores out",
        )
    stage.check_removal(region, count)
    batches = calibration(samples, Collator(processor, _MAX_LENGTH, train=True), _BATCH)
    cuts = rank_greedily(model, batches, region, count, Question(name))
    return stage.prune(model, region, count, None, name, cuts=cuts)[0]

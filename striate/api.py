"""Python calls that differ from a stage's own: a stage returns records, these return what a notebook wants."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from striate.artifacts import CompensationMethod, Region, Scores
from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.errors import ConfigError
from striate.pruning.compensation.compensate import compensate as compensate_for
from striate.pruning.greedy_ranking import MEASURES, Question, calibration, rank_greedily
from striate.pruning.position_order import ORDERS
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
    compensate: CompensationMethod | Literal["none"] = "none",
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
        compensate: how kept layers are changed to stand in for removed ones, by `samples`: `refit` or `scale`
            (`striate.pruning.compensation`); beside `scores` or a scorer of places, samples are read for that alone.
    """
    count = layers_to_remove(remove, region.num_layers)
    if samples is None and compensate == "none":
        return stage.prune(model, region, count, scores, scorer)[0]
    placed = scores is not None or scorer in ORDERS
    name = scorer if placed else scorer or "answer-loss"
    _check_samples(samples, processor, name, placed, compensate)
    stage.check_removal(region, count)
    batches = calibration(samples or (), Collator(processor, _MAX_LENGTH, train=True), _BATCH)
    cuts = () if placed else rank_greedily(model, batches, region, count, Question(str(name)))
    change = None if compensate == "none" else partial(compensate_for, model, batches, how=compensate)
    return stage.prune(model, region, count, scores, name, cuts=cuts, compensate=change)[0]


def _check_samples(
    samples: Sequence[Sample] | None, processor: Any, name: str | None, placed: bool, compensate: str
) -> None:
    """Raise where samples lack what they are read with, or are given and not read."""
    if samples is None or (processor is None and compensate != "none"):
        given = f"compensate={compensate!r} with {'no samples' if samples is None else 'no processor'}"
        raise ConfigError(given, "samples to fit to, and the model's processor", "pass samples=... and processor=...")
    unread = placed and compensate == "none"
    if unread or (not placed and name not in MEASURES) or processor is None:
        given = "scores beside samples" if unread else f"scorer {name!r} and processor {processor!r}"
        raise ConfigError(
            f"samples to rank layers by, with {given}",
            f"samples with a processor and scorer {' or '.join(MEASURES)}, or scores",
            "pass processor=..., and leave scores out",
        )

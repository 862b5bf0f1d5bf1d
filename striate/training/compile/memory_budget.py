"""The fewest layers whose activations are recomputed (activation checkpointing) so that training fits a budget."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from striate.artifacts import Region
from striate.data.label_mask import IGNORED
from striate.data.store.sample_columns import SampleColumns
from striate.errors import TrainingError
from striate.models.forecast.layer_shapes import ModelShape, model_shape
from striate.models.forecast.memory import forecast_memory
from striate.models.forecast.settings import GIB, Settings
from striate.models.structure.anatomy import find_anatomy
from striate.models.structure.meta_model import Blueprint
from striate.training.image_layers import visual_compute
from striate.training.job import TrainingJob
from striate.training.what_trains import encoder_layers_of

# How far measured peaks were above their forecasts at most, but for one (docs/forecast.md), as a share.
GAPS = 0.01


def layers_to_recompute(model: Any, job: TrainingJob, compiled: bool) -> frozenset[int]:
    """Return as few layers as `machine.memory_budget` asks for in the largest micro-batch.

    Raises:
        TrainingError: the budget is too small, or given together with checkpointing of every layer.
    """
    if job.config.gradient_checkpointing:
        raise TrainingError(
            "machine.memory_budget and train.gradient_checkpointing are both set",
            "a budget, from which the layers to recompute are chosen, or checkpointing of every layer",
            "leave out one of them",
        )
    shape = model_shape(Blueprint(model, find_anatomy(model)))
    # The steps that need most are those in which all layers compute image tokens.
    compute = visual_compute(job.region, job.config) if not job.config.image_whole_every else None
    settings = largest_micro_batch(shape, job)
    settings = replace(settings, fused=compiled, skipped=frozenset(compute.skipped if compute else ()))
    return within_budget(shape, job.region, settings, job.machine.memory_budget or math.inf).recomputed


def within_budget(shape: ModelShape, region: Region, settings: Settings, budget_gib: float) -> Settings:
    """Return `settings` with as few layers recomputed as keep the forecast peak below the budget.

    Frozen layers go before those that train, from the bottom up: when a low layer is run again in the backward pass,
    the activations of all layers above it are gone.

    Raises:
        TrainingError: the budget is too small even with every layer recomputed.
    """
    order = [index for index in range(len(shape.layers)) if index not in region.layers] + list(region.layers)
    peak = math.inf
    for count in range(len(order) + 1):
        candidate = replace(settings, recomputed=frozenset(order[:count]))
        needed = forecast_memory(shape, region, candidate).peak / GIB * (1 + GAPS)
        if needed <= budget_gib:
            return candidate
        peak = min(peak, needed)
    raise TrainingError(
        f"machine.memory_budget is {budget_gib:g} GiB, and training is forecast to need {peak:.1f} GiB"
        " with every decoder layer recomputed",
        f"a budget of at least {math.ceil(10 * peak) / 10:.1f} GiB",
        "raise it, lower machine.micro_batch or train.max_length, or use train.method=qlora",
    )


def largest_micro_batch(shape: ModelShape, job: TrainingJob) -> Settings:
    """Return the settings of the largest micro-batch: that of the samples with most pictures and longest texts."""
    config, plan = job.config, job.plan
    columns = SampleColumns.of(job.samples)
    order = np.lexsort((columns.lengths, columns.pictures))
    labels = job.collator([job.samples[index] for index in order[-plan.micro_batch :].tolist()])["labels"]
    rows, length = labels.shape
    answers = float((labels != IGNORED).sum()) / labels.numel()
    if config.packing:
        rows, length = 1, job.machine.pack_tokens
    return replace(
        Settings.of(config, encoder_layers_of(config, len(shape.encoder))),
        batch=rows,
        text_tokens=max(1, length - shape.image_tokens),
        answer_tokens=max(1, math.ceil(answers * length)),
        accumulated=plan.accumulation > 1,
    )

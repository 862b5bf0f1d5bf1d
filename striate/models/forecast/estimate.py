"""Forecast memory and time of a training step from an LVLM's config alone: no weights, no accelerator.

The forecast is striate's own trainer's: float32 masters of what trains, bfloat16 autocast, the LM head at answer
positions only, fused AdamW. `docs/forecast.md` has the arithmetic and how far it is from measured steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from striate.artifacts import Region
from striate.errors import ModelError, SpecError, did_you_mean
from striate.models.forecast.layer_shapes import ModelShape, model_shape
from striate.models.forecast.memory import Memory, forecast_memory
from striate.models.forecast.settings import ACCELERATORS, GIB, Accelerator, Settings
from striate.models.forecast.step_time import forecast_work
from striate.models.structure.meta_model import Blueprint

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "Forecast",
    "Settings",
    "accelerator",
    "forecast",
    "forecast_rows",
    "forecasts",
]

METHODS: tuple[Literal["lora", "qlora", "full"], ...] = ("lora", "qlora", "full")
HEADER = ("method", "checkpointed", "weights", "states", "grads", "saved", "peak", "ms")


@dataclass(frozen=True)
class Forecast:
    """What one training step will need.

    Attributes:
        settings: the step.
        memory: bytes by kind, and their peak.
        milliseconds: of the step on the accelerator.
        fits: whether the peak lies below the accelerator's memory.
    """

    settings: Settings
    memory: Memory
    milliseconds: float
    fits: bool


def forecast(shape: ModelShape, region: Region, settings: Settings, device: Accelerator = ACCELERATORS[0]) -> Forecast:
    """Return memory and time of one training step of `region`.

    Memory is counted (see `forecast_memory`); it was within 2% of five steps measured at LLaVA-1.5-7B's shape. Time is
    matrix products / (75% of the accelerator's best rate) + traffic between them / (64.5% of its memory's rate): the
    two shares are fitted to the same five steps on one H100, and other accelerators are taken to reach the same.

    Args:
        shape: from `model_shape`.
        region: which decoder layers train.
        settings: method and batch.
        device: what it runs on.

    Raises:
        SpecError: the region is of another depth.
        ModelError: a batch, a token count or a rank below 1.
    """
    _check(shape, region, settings)
    memory = forecast_memory(shape, region, settings)
    seconds = forecast_work(shape, region, settings).seconds(device)
    return Forecast(settings, memory, 1e3 * seconds, memory.peak_gib < device.memory_gib)


def forecasts(
    plan: Blueprint,
    region: Region,
    settings: Settings,
    device: Accelerator = ACCELERATORS[0],
    tokens: int | None = None,
) -> Iterator[Forecast]:
    """Yield the forecast of every method, without and with gradient checkpointing.

    `tokens` overrides the image tokens of a picture.

    Raises:
        SpecError: the region is of another depth.
        ModelError: a batch, a token count or a rank below 1.
    """
    shape = model_shape(plan, tokens)
    for method in METHODS:
        for checkpointing in (False, True):
            # An empty region has no layer for adapters, and full weights go with none.
            by_adapters = "lora" in (settings.projector, settings.vision)
            if not by_adapters if method == "full" else region.layers or by_adapters:
                yield forecast(shape, region, replace(settings, method=method, checkpointing=checkpointing), device)


def forecast_rows(found: Iterator[Forecast], device: Accelerator) -> list[list[str]]:
    """Return the forecasts as text, a row each, in the columns of `HEADER`."""
    rows = []
    for one in found:
        memory = one.memory
        parts = (memory.weights, memory.states, memory.gradients, memory.activations, memory.peak)
        peak = [f"{part / GIB:.1f}" for part in parts]
        peak[-1] += "" if one.fits else f" > {device.memory_gib:.0f}"
        names = {"lora": "LoRA", "qlora": "QLoRA", "full": "full"}
        rows.append([names[one.settings.method], "yes" if one.settings.checkpointing else "no"])
        rows[-1] += [*peak, f"{one.milliseconds:.0f}"]
    return rows


def accelerator(name: str) -> Accelerator:
    """Return the accelerator called `name`.

    Raises:
        ModelError: an unknown one.
    """
    names = [device.name for device in ACCELERATORS]
    if name.lower() not in names:
        hint = f"{did_you_mean(name.lower(), names)}h100 is the one that was measured"
        raise ModelError(f"unknown accelerator {name!r}", ", ".join(names), hint)
    return ACCELERATORS[names.index(name.lower())]


def _check(shape: ModelShape, region: Region, settings: Settings) -> None:
    """Refuse what no step can have."""
    if region.num_layers != len(shape.layers):
        raise SpecError(
            f"region {region.spec!r} is for {region.num_layers} decoder layers, the model has {len(shape.layers)}",
            f"a region of {len(shape.layers)} decoder layers",
            "run `striate select` on this model",
        )
    if min(settings.batch, settings.text_tokens, settings.answer_tokens, settings.r) < 1:
        raise ModelError(
            f"a step of batch {settings.batch}, {settings.text_tokens} text tokens, {settings.answer_tokens} of them"
            f" answers, rank {settings.r}",
            "at least 1 of each",
            "for example --batch 8 --text-tokens 200",
        )

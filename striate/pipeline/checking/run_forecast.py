"""What a run will take: time and memory of its training, and what its folder will hold. Forecast, not measured."""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from striate.artifacts import Region
from striate.config import REGION, RunConfig
from striate.pipeline.checking.region_ahead import also_computing
from striate.pruning.removal import removal_of
from striate.wording import plural

if TYPE_CHECKING:
    import torch

    from striate.data.checks.length_check import Lengths
    from striate.models.forecast.layer_shapes import ModelShape
    from striate.models.forecast.settings import Accelerator, Settings
    from striate.models.structure.meta_model import Blueprint

# Two checkpoints to go on from are kept, and a third is written before the oldest goes.
_CHECKPOINTS = 3
# What training and healing have in common in a forecast.
_OF_SAMPLES = ("batch", "text_tokens", "answer_tokens", "checkpointing", "masters")
# What Python and its libraries take of the CPU's memory.
_PROCESS = 1e9
_MATRIX, _COPIED, _SECONDS = {"cpu": 768, "cuda": 4096, "mps": 2048}, 2**25, 0.1


@dataclass(frozen=True)
class RunForecast:
    """What a run will take, and what there is.

    Attributes:
        device: what it trains on, in words.
        steps: optimizer steps of training.
        seconds: of training.
        healing: what is said of healing: its time and steps; empty where nothing is healed.
        memory: bytes at the peak of training.
        memory_there: bytes that the device has.
        disk: bytes that the run folder will hold at most.
        disk_there: bytes that are free where it will lie.
    """

    device: str
    steps: int
    seconds: float
    healing: str
    memory: float
    memory_there: float
    disk: float
    disk_there: float

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"training takes about {_duration(self.seconds)} ({plural(self.steps, 'step')} on {self.device}),"
            f"{self.healing} {_against('memory', self.memory, self.memory_there)} and"
            f" {_against('disk', self.disk, self.disk_there)}"
        )


def forecast_run(config: RunConfig, plan: Blueprint, region: Region, found: Lengths, out: Path) -> RunForecast:
    """Return what the run of `config` will take in the folder `out`; evaluation and analysis are not in its time.

    Args:
        config: the run's.
        plan: its model.
        region: which layers train, or as many.
        found: how long its training samples are.
        out: where the run folder will lie.
    """
    from striate.models.forecast.estimate import forecast
    from striate.models.forecast.layer_shapes import model_shape
    from striate.models.io.devices import resolve_device, resolve_dtype
    from striate.training.schedule import Plan

    device = resolve_device(config.machine.device)
    dtype = resolve_dtype(config.machine.dtype, device)
    schedule = Plan.of(found.samples, config.train, config.machine)
    pictures = found.pictures / max(1, found.samples)
    text = max(2, round(found.text / max(1, found.samples) - pictures))
    tuned = _tuned(config, model_shape(plan), region)[1]
    usual = _step(config, plan, tuned, schedule.micro_batch, text, accumulated=schedule.accumulation > 1)
    shown = max(1, round(pictures * found.image_tokens))
    largest = max(1, math.ceil(pictures) * found.image_tokens)
    most = max(2, min(found.longest, config.train.max_length - largest))
    whole, rates = dtype.itemsize == 4, _rates(device, dtype)
    every = config.train.image_whole_every
    fullest = replace(usual, skipped=frozenset()) if every else usual
    at_peak = forecast(
        *_tuned(config, model_shape(plan, largest), region),
        replace(fullest, text_tokens=most, answer_tokens=max(1, most // 2), masters=not whole and usual.masters),
        rates,
    )
    smaller = _tuned(config, model_shape(plan, shown), region)
    step, slow = (forecast(*smaller, one, rates).milliseconds / 1e3 for one in (usual, fullest))
    step += (slow - step) / every if every else 0
    return RunForecast(
        device=rates.title,
        steps=schedule.steps,
        # Without the copies in half precision that the counts are of, all takes twice the bytes.
        memory=at_peak.memory.peak * (2 if whole else 1) + (_PROCESS if device.type == "cpu" else 0),
        seconds=step * schedule.accumulation * schedule.steps * (1 if found.samples >= schedule.batch_size else 0.5),
        healing=_healing(config, model_shape(plan, shown), region, usual, rates, found.samples),
        memory_there=_memory_of(device),
        disk=_disk(config, plan, region, dtype.itemsize),
        disk_there=_free(out),
    )


def _tuned(config: RunConfig, shape: ModelShape, region: Region) -> tuple[ModelShape, Region]:
    """Return the model that is tuned and its region: without the layers that go before."""
    return _without(shape, region, removal_of(config.prune, region) if config.prune.first else 0)


def _without(shape: ModelShape, region: Region, remove: int) -> tuple[ModelShape, Region]:
    """Return a model and its region without `remove` layers outside it: which of them is not known yet."""
    from striate.models.surgery.renumber import new_numbers, renumbered

    gone = set(region.outside[len(region.outside) - remove :])
    kept = [layer for layer in range(region.num_layers) if layer not in gone]
    return replace(shape, layers=tuple(shape.layers[layer] for layer in kept)), renumbered(region, new_numbers(kept))


def _healing(
    config: RunConfig, shape: ModelShape, region: Region, usual: Settings, rates: Accelerator, samples: int
) -> str:
    """Return how long healing takes after training on `samples`; of one model, where `prune.until` tries several."""
    from striate.healing.healed_layers import layers_ahead
    from striate.healing.sample_mix import count_of
    from striate.models.forecast.estimate import forecast
    from striate.models.forecast.settings import Settings
    from striate.training.schedule import Plan

    if not config.heals:
        return ""
    train = config.heal.training(config.train.settled(len(region), region.num_layers))
    schedule = Plan.of(count_of(samples, config.heal, train.batch_size), train, config.machine)
    most = removal_of(config.prune, region)
    smaller, own = _without(shape, region, most)
    healed = next(iter(layers_ahead(config, region, most)), own) if config.heal.region != REGION else own
    settings = replace(Settings.of(train), **{name: getattr(usual, name) for name in _OF_SAMPLES})
    seconds = forecast(smaller, healed, settings, rates).milliseconds / 1e3 * schedule.accumulation * schedule.steps
    each = " for each model that is tried" if config.prune.until else ""
    return f" healing about {_duration(seconds)} ({plural(schedule.steps, 'step')}){each},"


def _step(
    config: RunConfig, plan: Blueprint, region: Region, batch: int, text_tokens: int, *, accumulated: bool
) -> Settings:
    """Return the step that is forecast."""
    from striate.models.forecast.layer_shapes import model_shape
    from striate.models.forecast.settings import Settings
    from striate.training.image_layers import most_computing, visual_compute
    from striate.training.what_trains import encoder_layers_of

    encoder = encoder_layers_of(config.train, len(model_shape(plan).encoder))
    also = also_computing(config, region.num_layers)
    compute = visual_compute(region, config.train) if also is None else most_computing(region, config.train, also)
    skipped = set(range(region.num_layers)) - set(compute.layers) if compute else set()
    return replace(
        Settings.of(config.train, encoder),
        batch=batch,
        text_tokens=text_tokens,
        answer_tokens=max(1, text_tokens // 2),
        checkpointing=config.train.gradient_checkpointing,
        accumulated=accumulated,
        skipped=frozenset(skipped),
    )


def _disk(config: RunConfig, plan: Blueprint, region: Region, width: int) -> float:
    """Return the bytes that a run's folder will hold at most: models, and checkpoints to go on from."""
    from striate.models.structure.meta_model import pruned_counts

    trained = _trained(config, plan, region)
    states = 2 if config.train.optimizer == "adamw-8bit" else 8
    work = _CHECKPOINTS * trained * (4 + states)
    tuned = plan.total * width if config.train.method == "full" else trained * 4
    pruned = 0
    if config.prune.remove:
        pruned = pruned_counts(plan, region, removal_of(config.prune, region))[0] * width * (2 if config.heals else 1)
    return float(tuned + pruned + work)


def _trained(config: RunConfig, plan: Blueprint, region: Region) -> int:
    """Return how many parameters train."""
    from striate.models.trainable.apply import apply_region
    from striate.models.trainable.counts import adapter_parameters
    from striate.training.what_trains import adapters_of, beside_of

    if config.train.method != "full":
        return adapter_parameters(plan.model, adapters_of(plan.model, region, config.train))
    beside = beside_of(plan.model, config.train)
    opened = apply_region(
        plan.model, region, "full", beside.projector, vision=beside.vision, vision_region=beside.vision_region
    )
    return opened.trainable


def _rates(device: torch.device, dtype: torch.dtype) -> Accelerator:
    """Return what the device computes and moves a second: of a known accelerator, or as it is measured now."""
    import torch

    from striate.models.forecast.settings import ACCELERATORS, Accelerator

    title = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this {device.type.upper()}"
    known = [one for one in ACCELERATORS if one.name in title.lower().replace(" ", "")]
    if known:
        return known[0]
    side = _MATRIX[device.type]
    square, values = torch.ones(side, side, dtype=dtype, device=device), torch.ones(_COPIED, device=device)
    products = _a_second(device, lambda: square @ square)
    copies = _a_second(device, lambda: values.clone())
    return Accelerator(title, title, 2.0 * side**3 * products, 8.0 * _COPIED * copies, _memory_of(device) / 2**30, "")


def _a_second(device: torch.device, work: object) -> float:
    """Return how often `work` is done a second, after once that does not count."""
    import torch

    assert callable(work)
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    work()
    wait()
    begin, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - begin) < _SECONDS or not count:
        work()
        wait()
        count += 1
    return count / max(taken, 1e-9)


def _memory_of(device: torch.device) -> float:
    import torch

    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _free(out: Path) -> float:
    """Return the free bytes of the file system on which `out` is, or will be made."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    return float(shutil.disk_usage(place).free)


def _against(what: str, taken: float, there: float) -> str:
    over = ", WHICH IS TOO LITTLE" if taken > there else ""
    return f"about {_size(taken)} of {_size(there)} {what}{over}"


def _size(count: float) -> str:
    for size, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{count / size:,.1f} {name}" if count < 100 * size else f"{count / size:,.0f} {name}"
    return f"{count / 1e3:,.0f} kB"


def _duration(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {name}" if seconds < 10 * size else f"{seconds / size:.0f} {name}"
    return f"{max(1, round(seconds))} s"

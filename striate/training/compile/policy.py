"""What makes a training fast and small on this machine without changing its mathematics, decided before it begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from striate.artifacts import Region
from striate.config import MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.encoding import IGNORED
from striate.data.samples import Sample
from striate.errors import TrainingError
from striate.models.forecast.estimate import forecast
from striate.models.forecast.layer_shapes import ModelShape, model_shape
from striate.models.forecast.memory import forecast_memory
from striate.models.forecast.settings import GIB, Settings
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.structure.decoder_stack import decoder_config
from striate.models.structure.meta_model import Blueprint
from striate.training.approximations import visual_compute
from striate.training.compile.cuda_graphs.recorded import CudaRecorder, Recorder
from striate.training.compile.last_layer_answers import has_known_form
from striate.training.compile.regional import fast_layers, reads_last_by_position
from striate.training.compile.short_choice import TOKENS, short_samples
from striate.training.schedule import Plan
from striate.training.step_hints.image_embeds import PicturePlaces
from striate.training.trainer import RegionTrainer

# Compiling takes up to a minute and a third of a step's time is saved: below this it is not worth the wait.
WORTH_SECONDS = 180.0
# What launching a layer's kernels one by one takes, both ways: 2.6 ms a layer were measured on an H100's machine.
SHORT_MS = 4.0
# A recorded last layer and loss take numbers of answers that are multiples of this.
ANSWERS_TOGETHER = 256
# How far measured peaks were above their forecasts at most, but for one (docs/forecast.md), as a share.
GAPS = 0.01


@dataclass(frozen=True)
class Speed:
    """How the decoder layers run.

    Attributes:
        compiled: whether each kind of layer is compiled.
        lean: whether frozen layers run their attention again in the backward pass.
        recomputed: the layers that keep their input alone and are run again in the backward pass.
        graphs: whether the kernels of compiled layers are recorded and launched together.
        fill: packed rows are filled up to a multiple of this many tokens.
        line: what to tell about it, or empty.
    """

    compiled: bool = False
    lean: bool = False
    recomputed: frozenset[int] = frozenset()
    graphs: bool = False
    fill: int = 1
    line: str = ""


def plan_speed(
    model: Any,
    region: Region,
    samples: Sequence[Sample],
    collator: Collator,
    config: TrainSection,
    machine: MachineSection,
    plan: Plan,
) -> Speed:
    """Return how the layers of `model`, not yet wrapped by PEFT, run: from the config and the largest batch alone.

    `machine.compile` auto compiles on CUDA when the forecast of the whole training is at least `WORTH_SECONDS`.

    Raises:
        TrainingError: the memory budget is too small, or given together with checkpointing of every layer.
    """
    budget = machine.memory_budget
    if budget is not None and config.gradient_checkpointing:
        raise TrainingError(
            "machine.memory_budget and train.gradient_checkpointing are both set",
            "a budget, from which the layers to recompute are chosen, or checkpointing of every layer",
            "leave out one of them",
        )
    on_card = next(model.parameters()).device.type == "cuda"
    automatic = machine.compile == "auto" and on_card
    asked = machine.compile == "on" and machine.graphs == "auto" and on_card
    if not (automatic or asked) and budget is None:
        return with_graphs(Speed(compiled=machine.compile == "on"), math.inf, config, machine, on_card)
    shape = model_shape(Blueprint(model, find_anatomy(model)))
    settings = _largest(shape, samples, collator, plan, config, machine)
    compute = visual_compute(region, config)
    skipped = frozenset(compute.skipped if compute else ())
    settings = replace(settings, fused=machine.compile == "on" or automatic, skipped=skipped)
    last = reads_last_by_position(model) and has_known_form(decoder_layers(model)[-1])
    settings = replace(settings, answers_last=settings.fused and last)
    line, each = "", 0.0
    if automatic or asked:
        each = forecast(shape, region, settings).milliseconds if region.layers else 0.0
    if automatic:
        seconds = each / 1e3 * plan.steps * plan.accumulation
        if seconds < WORTH_SECONDS:
            settings = replace(settings, fused=False, answers_last=False)
            line = f"decoder layers run uncompiled: training is forecast to take {seconds:.0f} s (machine.compile)"
    if budget is None:
        return with_graphs(Speed(settings.fused, line=line), each / len(shape.layers), config, machine, on_card)
    found = within_budget(shape, region, settings, budget)
    attention = " and the attention of frozen ones" if found.lean else ""
    chosen = f"{len(found.recomputed)} of {len(shape.layers)} decoder layers{attention} are recomputed"
    lines = [line, f"{chosen} to stay below {budget:g} GiB"]
    speed = Speed(settings.fused, found.lean, found.recomputed, line="; ".join(one for one in lines if one))
    return with_graphs(speed, math.inf, config, machine, on_card)


def with_graphs(speed: Speed, each: float, config: TrainSection, machine: MachineSection, on_card: bool) -> Speed:
    """Return `speed` with whether kernels are recorded; a line says why not where they were asked for.

    `machine.graphs` auto records where a layer's passes are short, `each` milliseconds, and batches of few forms can
    be made: packed rows, filled up to quarters of `machine.pack_tokens`.
    """
    reasons = {
        "layers run uncompiled": not speed.compiled,
        "the model is not on a CUDA device": not on_card,
        "layers are run again in the backward pass": bool(speed.recomputed) or config.gradient_checkpointing,
        "layers take turns": bool(config.resample.active),
        "image tokens skip layers": config.image_tokens != "all",
    }
    found = next((reason for reason, holds in reasons.items() if holds), "")
    if machine.graphs == "on" and found:
        line = f"machine.graphs has no effect: {found}"
        return replace(speed, line="; ".join(one for one in (speed.line, line) if one))
    chosen = machine.graphs == "on" or (machine.graphs == "auto" and config.packing and each < SHORT_MS)
    if found or not chosen:
        return speed
    return replace(speed, graphs=True, fill=max(1, machine.pack_tokens // 4))


@contextmanager
def fast(trainer: RegionTrainer, speed: Speed, say: Callable[[str], None]) -> Iterator[None]:
    """Let the trainer's decoder layers run as `speed` says for a while, and tell in one line how that went."""
    if speed.line:
        say(speed.line)
    if speed.compiled and trainer.sharded:
        say("decoder layers run uncompiled: each process holds a part of their weights")
        speed = replace(speed, compiled=False, graphs=False)
    if trainer.args.device.type == "cuda" and not trainer.sharded:
        trainer.places = PicturePlaces(trainer.model, say)
    if not (speed.compiled or speed.recomputed):
        yield
        return
    how: dict[str, Any] = {"compiled": speed.compiled, "recomputed": speed.recomputed, "lean": speed.lean}
    if speed.graphs:
        how["recorder"] = recorder()
        trainer.step_collator.fill, trainer.answer_multiple = speed.fill, ANSWERS_TOGETHER
    with short_attended(trainer.model, speed, say), fast_layers(trainer.model, **how, say=say) as layers:
        prove = trainer.prove

        def proved(model: nn.Module) -> str:
            with layers.uncompiled():
                return prove(model)

        trainer.prove = proved
        yield
        if speed.compiled:
            say(layers.describe())


def short_attended(model: nn.Module, speed: Speed, say: Callable[[str], None]) -> AbstractContextManager[None]:
    """Return a context in which short samples attend by kernels of their own, where kernels are recorded."""
    config, half = decoder_config(model), any(parameter.dtype is torch.bfloat16 for parameter in model.parameters())
    heads = getattr(config, "num_attention_heads", None)
    if not (speed.graphs and half and heads and next(model.parameters()).device.type == "cuda"):
        return nullcontext()
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    return short_samples(heads, shared, size, max(1, speed.fill // TOKENS), say)


def recorder() -> Recorder:
    """Return what records kernels on this machine."""
    return CudaRecorder()


def within_budget(shape: ModelShape, region: Region, settings: Settings, budget_gib: float) -> Settings:
    """Return `settings` with as little recomputed as keeps the forecast peak below the budget.

    What costs least for its memory goes first: the attention of frozen layers that run compiled, then whole layers,
    frozen ones before those that train. From the bottom up: when a low layer is run again in the backward pass, the
    activations of all layers above it are gone.

    Raises:
        TrainingError: the budget is too small even with every layer recomputed.
    """
    layers = range(len(shape.layers))
    order = [index for index in layers if index not in region.layers] + list(region.layers)
    steps = [replace(settings, recomputed=frozenset(order[:count]), lean=settings.fused) for count in range(len(order))]
    peak = math.inf
    for found in (settings, *steps, replace(settings, recomputed=frozenset(order))):
        needed = forecast_memory(shape, region, found).peak / GIB * (1 + GAPS)
        if needed <= budget_gib:
            return found
        peak = min(peak, needed)
    raise TrainingError(
        f"machine.memory_budget is {budget_gib:g} GiB, and training is forecast to need {peak:.1f} GiB"
        " with every decoder layer recomputed",
        f"a budget of at least {math.ceil(10 * peak) / 10:.1f} GiB",
        "raise it, lower machine.micro_batch or train.max_length, or use train.method=qlora",
    )


def _largest(
    shape: ModelShape,
    samples: Sequence[Sample],
    collator: Collator,
    plan: Plan,
    config: TrainSection,
    machine: MachineSection,
) -> Settings:
    """Return the settings of the largest micro-batch: that of the samples with most pictures and longest texts."""

    def size(sample: Sample) -> tuple[int, int]:
        return len(sample.images), sum(len(message.text) for message in sample.messages)

    labels = collator(sorted(samples, key=size)[-plan.micro_batch :])["labels"]
    rows, length = labels.shape
    answers = float((labels != IGNORED).sum()) / labels.numel()
    if config.packing:
        rows, length = 1, machine.pack_tokens
    return Settings(
        method=config.method,
        batch=rows,
        text_tokens=max(1, length - shape.image_tokens),
        answer_tokens=max(1, math.ceil(answers * length)),
        r=config.lora.r,
        train_projector=config.train_projector,
        accumulated=plan.accumulation > 1,
        frozen=config.frozen,
        optimizer=config.optimizer,
    )

"""What is looked at before a training begins: what would otherwise fail only after hours, or have no effect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from striate.artifacts import Region
from striate.config import ResampleSection, TrainSection
from striate.data.samples import Sample
from striate.errors import ArtifactError, TrainingError
from striate.models.structure.anatomy import DECODER_LAYER, check_decoder_only, find_anatomy
from striate.models.trainable.apply import is_quantized, no_linear
from striate.progress import Progress, warn
from striate.training.distributed.sharding import check_sharding, sharding
from striate.training.image_layers import visual_compute
from striate.training.lisa import check_lisa, never_sampled
from striate.training.optimizers import check_optimizer
from striate.training.schedule import Plan
from striate.wording import named_layers, plural


def check_training(
    model: nn.Module, region: Region, samples: Sequence[Sample], config: TrainSection, out: Path | None
) -> None:
    """Return if `model` can be trained as `config` says, and written to `out`, if that is given.

    Raises:
        ModelError: not an LVLM, or an encoder-decoder.
        TrainingError: samples, method, number format, turns of layers, sharding or optimizer that don't go together.
        ArtifactError: `out` is not empty.
    """
    check_decoder_only(find_anatomy(model))
    check_samples(samples, config)
    _check_weights(model, config)
    if out is not None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ArtifactError(f"{out} exists already", "a new or empty folder", "remove it, or choose another folder")
    check_layers(region, config)
    check_sharding(config)
    check_optimizer(config, next(model.parameters()).device)


def check_samples(samples: Sequence[Sample], config: TrainSection) -> None:
    """Return if `samples` can train what `config` says.

    Raises:
        TrainingError: there are none, or none with a picture where what computes image tokens trains.
    """
    if not samples:
        raise TrainingError("there are no training samples", "at least one sample", "check data.train")
    if config.before_decoder and not any(sample.images for sample in samples):
        part, setting = ("projector", "projector") if config.projector != "frozen" else ("vision encoder", "vision")
        raise TrainingError(
            f"the {part} can't train: no training sample has a picture",
            f"samples with pictures, or train.{setting}=frozen",
            f"add pictures to data.train, or use --set train.{setting}=frozen",
        )


def check_validation(config: TrainSection, held_out: Sequence[Sample]) -> None:
    """Return if held-out samples can be measured, where that is wanted, and are there where something follows from it.

    Raises:
        TrainingError: they can't, or are not.
    """
    wanted = [f"train.{name}" for name, holds in config.on_validation.items() if holds]
    if wanted and not held_out:
        raise TrainingError(
            f"{wanted[0]} follows from held-out samples, and there are none",
            "held-out samples, or neither train.keep=best nor train.early_stopping_patience",
            "set data.validate to a share of the training data such as 2%, or to a file of samples",
        )
    if held_out and sharding() == "deepspeed":
        raise TrainingError(
            "data.validate is set, and weights are sharded by deepspeed: a forward pass without a backward pass is not"
            " tried with its engine",
            "validation on one process, or with configs/accelerate/ddp.yaml or fsdp2.yaml",
            "use one of these, or leave out data.validate",
        )


def check_broken(broken: str, processes: int) -> None:
    """Return if broken samples can be left out, where that is wanted.

    Raises:
        TrainingError: several processes train, which must all learn from as many samples.
    """
    if broken == "skip" and processes > 1:
        raise TrainingError(
            f"data.broken is skip, and {processes} processes train together",
            "data.broken=skip with one process",
            "use data.broken=refuse, and mend or remove what `striate check` names",
        )


def check_layers(region: Region, config: TrainSection) -> None:
    """Return if the layers that `config` speaks of go together with the region.

    Raises:
        SpecError: layers that compute image tokens without need, or all layers.
        TrainingError: more layers open at a time than the region has, or adapters for a region of no layers.
    """
    if config.method != "full" and not region.layers and "lora" not in (config.projector, config.vision):
        raise no_linear(DECODER_LAYER, region)
    visual_compute(region, config)
    check_lisa(region, config.resample)


def warn_of_lisa(region: Region, section: ResampleSection, steps: int, seed: int, progress: Progress) -> None:
    """Say which settings of `train.resample` have no effect, and which layers will never be open."""
    if section.active is None:
        return
    if section.active == len(region):
        warn(progress, f"train.resample has no effect: all {len(region)} layers of the region are open all the time")
    left_out = never_sampled(region, section, steps, seed)
    if left_out:
        layers = named_layers(left_out)
        warn(
            progress,
            f"{layers} will not train: {plural(steps, 'step')}, with {plural(section.active, 'layer')} open for"
            f" {plural(section.every, 'step')}, are too few; lower train.resample.every or raise train.resample.active",
        )


def warn_of_warmup(plan: Plan, progress: Progress) -> None:
    """Say that nothing is learned where the only step is warm-up, which begins at a learning rate of 0."""
    if plan.steps == 1 and plan.warmup_steps:
        warn(
            progress,
            "no effect: the only step is warm-up, at a learning rate of 0 (take more steps, or set"
            " train.warmup_ratio=0)",
        )


def warn_of_whole_steps(every: int, steps: int, progress: Progress) -> None:
    """Say where no step will be whole."""
    if every > steps:
        warn(progress, f"train.image_whole_every has no effect: the training has {steps} steps, fewer than {every}")


def _check_weights(model: nn.Module, config: TrainSection) -> None:
    """Raise for weights in a number format that the method or the device does not train."""
    if config.method == "qlora" and not is_quantized(model):
        raise TrainingError(
            "train.method is qlora, and the model's weights are not in 4 bits",
            "a model from striate.models.io.quantized.load_quantized, or train.method=lora",
            "load it so; `striate train` does",
        )
    weight = next(model.parameters())
    check_format(weight.dtype, weight.device)


def check_format(dtype: torch.dtype, device: torch.device) -> None:
    """Return if weights of `dtype` train on `device`.

    Raises:
        TrainingError: they don't.
    """
    if dtype is torch.float16 and device.type == "cpu":
        raise TrainingError(
            "float16 does not train on the CPU",
            "float32 or bfloat16 on the CPU, float16 on CUDA",
            "use --set machine.dtype=float32",
        )

"""Visual instruction tuning of a region and the projector; everything else stays as it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from striate.artifacts import Region, Trainable, TrainRecord
from striate.config import MachineSection, ResampleSection, TrainSection
from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.errors import ArtifactError, TrainingError
from striate.models.anatomy import check_decoder_only, find_anatomy
from striate.models.card import CardFacts
from striate.models.loading import save_model
from striate.models.memory import peak_memory_gib
from striate.models.trainability import apply_region, is_quantised, lora_config, prove_trainable
from striate.progress import Progress, Silent
from striate.training.engine import Plan
from striate.training.fast_modes import begin_modes, end_modes
from striate.training.modes import MasterWeights
from striate.training.processes import Processes
from striate.training.resampling import LayerTurns, check_resampling, never_open, resampled
from striate.training.resume import find_checkpoint, identity, remove_checkpoints
from striate.training.scale import check_sharding, make_whole, peak_of_all, sharding
from striate.training.sitting import run_sitting
from striate.training.speed import plan_speed
from striate.training.vision_cache import keep_features
from striate.writing import cache_folder


def train(
    model: Any,
    processor: Any,
    region: Region,
    samples: Sequence[Sample],
    config: TrainSection,
    machine: MachineSection,
    *,
    seed: int,
    out: Path,
    work_dir: Path,
    log: Path,
    base_path: str,
    progress: Progress | None = None,
) -> TrainRecord:
    """Return how the training went, after writing the tuned model to the folder `out`.

    The method of arXiv 2412.12785: only the decoder layers of the region and the projector are updated. `model` is
    tuned in place and left in eval mode; with LoRA its region gets adapters. `out` becomes a PEFT adapter folder
    (LoRA) or an ordinary checkpoint (full), with the processor and region.json, and loads without striate.

    An interrupted training goes on from `work_dir` when called again with the same arguments and a fresh model, and
    gives the same weights as one without interruption.

    Args:
        model: a plain LVLM on the device to train on.
        processor: its processor.
        region: which decoder layers train.
        samples: the training set.
        config: the science: method, learning rates, batch size, length.
        machine: micro-batch and workers.
        seed: of the order of samples, of the adapters' first values and of dropout.
        out: the checkpoint folder, written whole or not at all; must be new or empty.
        work_dir: where unfinished training keeps its checkpoints, which are removed at the end.
        log: `train_log.jsonl`, one line a step.
        base_path: where the base model is, as the adapter names it.
        progress: where to show it.

    Raises:
        ModelError: not an LVLM, or an encoder-decoder.
        TrainingError: nothing to train, a failed proof, a loss that is not finite, or a work folder of another run.
        DataError: a sample that can't be used.
        ArtifactError: a folder that can't be written, or `out` is not empty.
    """
    progress = progress or Silent()
    _check(model, samples, config, out)
    check_resampling(region, config.resample)
    check_sharding(config)
    processes = Processes.launched()
    processes.join(next(model.parameters()).device)
    if not processes.writes:
        progress = Silent()
    plan = Plan.of(len(samples), config, machine, processes.count)
    _warn_of_turns(region, config.resample, plan.steps, seed, progress)
    run = {**identity(region, config, samples, seed, base_path), "sharding": sharding()}
    checkpoint = processes.first(lambda: find_checkpoint(work_dir, run))
    collator = Collator(processor, config.max_length, train=True)
    speed = plan_speed(model, region, samples, collator, config, machine, plan)
    torch.manual_seed(seed)
    tuned, trainable = _open(model, region, config, base_path)
    turns = LayerTurns(tuned, region, config.resample, seed) if config.resample.active else None
    opened = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    weights = MasterWeights(tuned)
    example = next((sample for sample in samples if sample.images), samples[0])
    region = begin_modes(tuned, region, collator([example]), config)

    def prove(prepared: nn.Module) -> str:
        return _prove(prepared, region, collator([example]), config.train_projector, turns)

    place = Path(machine.cache_folder) if machine.cache_folder else cache_folder() / "vision"
    try:
        vision = keep_features(
            tuned, processor, samples, collator, machine, half=weights.dtype, folder=place, progress=progress
        )
        outcome = run_sitting(
            tuned,
            samples,
            collator,
            config,
            machine,
            plan,
            region,
            half=weights.dtype,
            seed=seed,
            work_dir=work_dir,
            log=log,
            run=run,
            checkpoint=checkpoint,
            prove=prove,
            progress=progress,
            processes=processes,
            vision=vision,
            turns=turns,
            speed=speed,
        )
    finally:
        end_modes(tuned, config)
        weights.restore()
        tuned.eval()
    card = CardFacts(
        base=base_path,
        method=config.method,
        region=region,
        trained=(trainable.trainable, trainable.total),
        samples=len(samples),
        adapter=config.method != "full",
    )
    make_whole(tuned, weights, opened)
    processes.first(lambda: save_model(tuned, processor, out, region, card))
    processes.first(lambda: remove_checkpoints(work_dir))
    progress.say(outcome.proof)
    device = next(tuned.parameters()).device
    return TrainRecord(
        trainable=trainable,
        proof=outcome.proof,
        samples=len(samples),
        steps=plan.steps,
        epochs=plan.steps / plan.steps_per_epoch,
        first_loss=outcome.first_loss,
        last_loss=outcome.last_loss,
        seconds=outcome.seconds,
        peak_memory_gib=peak_of_all(peak_memory_gib(device), device),
        tokens=outcome.tokens,
        padding=1 - outcome.tokens / max(1, outcome.slots),
        resampled=resampled(config.resample, region.layers, outcome.rows) if turns else None,
    )


def _check(model: nn.Module, samples: Sequence[Sample], config: TrainSection, out: Path) -> None:
    """Raise for what would otherwise fail only after hours."""
    check_decoder_only(find_anatomy(model))
    if not samples:
        raise TrainingError("there are no training samples", "at least one sample", "check data.train")
    if config.train_projector and not any(sample.images for sample in samples):
        raise TrainingError(
            "the projector can't train: no training sample has a picture",
            "samples with pictures, or train.train_projector=false",
            "add pictures to data.train, or use --set train.train_projector=false",
        )
    if config.method == "qlora" and not is_quantised(model):
        raise TrainingError(
            "train.method is qlora, and the model's weights are not in 4 bits",
            "a model from striate.models.quantised.load_quantised, or train.method=lora",
            "load it so; `striate train` does",
        )
    weight = next(model.parameters())
    if weight.dtype is torch.float16 and weight.device.type == "cpu":
        raise TrainingError(
            "float16 does not train on the CPU",
            "float32 or bfloat16 on the CPU, float16 on CUDA",
            "use --set machine.dtype=float32",
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ArtifactError(f"{out} exists already", "a new or empty folder", "remove it, or choose another folder")


def _prove(
    model: nn.Module, region: Region, batch: Mapping[str, Any], train_projector: bool, turns: LayerTurns | None
) -> str:
    """Return the proof of what trains: of the whole region at once, or of as many layers at a time as train so."""
    if turns is None:
        return prove_trainable(model, region, batch, train_projector=train_projector)
    proofs = [
        prove_trainable(model, region.model_copy(update={"layers": layers}), batch, train_projector=train_projector)
        for layers in turns.one_after_another()
    ]
    return (
        f"{len(region)} layers, proved in {len(proofs)} sets that were open one after another; the first: {proofs[0]}"
    )


def _warn_of_turns(region: Region, section: ResampleSection, steps: int, seed: int, progress: Progress) -> None:
    """Say which settings of `train.resample` have no effect, and which layers will never be open."""
    if section.active is None:
        return
    if section.active == len(region):
        progress.say(f"train.resample has no effect: all {len(region)} layers of the region are open all the time")
    left_out = never_open(region, section, steps, seed)
    if left_out:
        progress.say(
            f"layers {', '.join(map(str, left_out))} will not train: {steps} steps, with {section.active} layers drawn"
            f" every {section.every} steps, are too few; lower train.resample.every or raise train.resample.active"
        )


def _open(model: Any, region: Region, config: TrainSection, base_path: str) -> tuple[Any, Trainable]:
    """Return the model with exactly the chosen parameters open, wrapped by PEFT for LoRA, and what they are."""
    if config.method == "full":
        return model, apply_region(model, region, "full", config.train_projector)
    lora = lora_config(
        model,
        region,
        r=config.lora.r,
        alpha=config.lora.alpha,
        dropout=config.lora.dropout,
        train_projector=config.train_projector,
    )
    with warnings.catch_warnings():
        # peft asks transformers 5.2x for a property that it renames.
        warnings.simplefilter("ignore", FutureWarning)
        tuned = peft.get_peft_model(model, lora)
    tuned.peft_config["default"].base_model_name_or_path = base_path
    return tuned, apply_region(tuned, region, config.method, config.train_projector)

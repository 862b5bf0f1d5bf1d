"""Visual instruction tuning of a region and the projector; everything else stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from striate.artifacts import Region, TrainRecord
from striate.config import MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.models.io.load import save_model
from striate.models.io.model_card import CardFacts
from striate.progress import Progress, Silent
from striate.runs.peak_memory import peak_memory_gib
from striate.training.caching.vision_features import cached_features
from striate.training.checkpoints import find_checkpoint, identity, remove_checkpoints
from striate.training.compile.policy import plan_speed
from striate.training.distributed.full_parameters import unshard
from striate.training.distributed.ranks import Ranks
from striate.training.distributed.sharding import sharding
from striate.training.lisa import lisa_record
from striate.training.preflight_checks import check_training, warn_of_lisa
from striate.training.schedule import Plan
from striate.training.session import Outcome, run_sitting
from striate.training.setup import Opened, opened


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
        SpecError: `image_also` of `config` can't be read, or has no effect.
        ModelError: not an LVLM, or an encoder-decoder.
        TrainingError: nothing to train, a failed proof, a loss that is not finite, or a work folder of another run.
        DataError: a sample that can't be used.
        ArtifactError: a folder that can't be written, or `out` is not empty.
    """
    progress = progress or Silent()
    check_training(model, region, samples, config, out)
    ranks = Ranks.launched()
    ranks.join(next(model.parameters()).device)
    if not ranks.is_main:
        progress = Silent()
    plan = Plan.of(len(samples), config, machine, ranks.world_size)
    warn_of_lisa(region, config.resample, plan.steps, seed, progress)
    run = {**identity(region, config, samples, seed, base_path), "sharding": sharding()}
    checkpoint = ranks.on_main(lambda: find_checkpoint(work_dir, run))
    collator = Collator(processor, config.max_length, train=True)
    speed = plan_speed(model, region, samples, collator, config, machine, plan)
    torch.manual_seed(seed)
    with opened(model, region, samples, collator, config, seed=seed, base_path=base_path) as ready:
        cached = cached_features(
            ready.model, processor, samples, collator, machine, half=ready.weights.dtype, progress=progress
        )
        outcome = run_sitting(
            ready.model,
            samples,
            collator,
            config,
            machine,
            plan,
            ready.region,
            half=ready.weights.dtype,
            seed=seed,
            work_dir=work_dir,
            log=log,
            run=run,
            checkpoint=checkpoint,
            prove=ready.prove,
            progress=progress,
            ranks=ranks,
            cached=cached,
            turns=ready.turns,
            speed=speed,
        )
    unshard(ready.model, ready.weights.dtypes, ready.names)
    card = _card(ready, config, len(samples), base_path)
    ranks.on_main(lambda: save_model(ready.model, processor, out, ready.region, card))
    ranks.on_main(lambda: remove_checkpoints(work_dir))
    progress.say(outcome.proof)
    return _record(ready, outcome, plan, config)


def _card(ready: Opened, config: TrainSection, samples: int, base_path: str) -> CardFacts:
    """Return what the checkpoint's model card tells."""
    return CardFacts(
        base=base_path,
        method=config.method,
        region=ready.region,
        trained=(ready.trainable.trainable, ready.trainable.total),
        samples=samples,
        adapter=config.method != "full",
    )


def _record(ready: Opened, outcome: Outcome, plan: Plan, config: TrainSection) -> TrainRecord:
    """Return how the training went."""
    device = next(ready.model.parameters()).device
    return TrainRecord(
        trainable=ready.trainable,
        proof=outcome.proof,
        samples=plan.samples,
        steps=plan.steps,
        epochs=plan.steps / plan.steps_per_epoch,
        first_loss=outcome.first_loss,
        last_loss=outcome.last_loss,
        seconds=outcome.seconds,
        peak_memory_gib=Ranks.launched().maximum(peak_memory_gib(device), device),
        tokens=outcome.tokens,
        padding=1 - outcome.tokens / max(1, outcome.slots),
        resampled=lisa_record(config.resample, ready.region.layers, outcome.rows) if ready.turns else None,
    )

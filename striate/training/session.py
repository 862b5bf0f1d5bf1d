"""One sitting of a training: from the last whole checkpoint, or from the start, to the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from striate.artifacts import Region
from striate.config import MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.progress import Progress
from striate.training.approximations import frozen_format
from striate.training.batching.micro_batches import share_of, touch_of
from striate.training.caching.vision_features import CachedFeatures
from striate.training.checkpoints import COMPLETE, load_trainable, step_of
from striate.training.compile.policy import Speed, fast
from striate.training.distributed.ranks import Ranks
from striate.training.distributed.sharding import may_lack_gradients, set_wrapping_policy, sharding
from striate.training.lisa import LisaSchedule
from striate.training.metrics_log import MetricsLog
from striate.training.precision import checkpointed
from striate.training.schedule import Plan, training_arguments
from striate.training.trainer import Proof, RegionTrainer


@dataclass(frozen=True)
class Outcome:
    """How it went, earlier sittings included: the proof, losses in nats a token, seconds, and the log of all steps."""

    proof: str
    first_loss: float
    last_loss: float
    seconds: float
    rows: list[dict[str, Any]]

    @property
    def tokens(self) -> int:
        """Tokens of all samples learned from, as often as they were."""
        return sum(row.get("tokens", 0) for row in self.rows)

    @property
    def slots(self) -> int:
        """The same with padding."""
        return sum(row.get("slots", 0) for row in self.rows)


def run_sitting(
    model: nn.Module,
    samples: Sequence[Sample],
    collator: Collator,
    config: TrainSection,
    machine: MachineSection,
    plan: Plan,
    region: Region,
    *,
    half: torch.dtype | None,
    seed: int,
    work_dir: Path,
    log: Path,
    run: dict[str, Any],
    checkpoint: Path | None,
    prove: Proof,
    progress: Progress,
    ranks: Ranks,
    cached: CachedFeatures | None = None,
    turns: LisaSchedule | None = None,
    speed: Speed | None = None,
) -> Outcome:
    """Return how the training went, with `model` trained in place from `checkpoint` (or the start) to the last step.

    Raises:
        TrainingError: a failed proof, or a loss that is not finite.
        ArtifactError: log or checkpoints can't be written.
    """
    done = step_of(checkpoint)
    with MetricsLog(log, done, ranks.is_main) as step_log, progress.track("train", plan.steps) as advance:
        if checkpoint:
            progress.say(f"going on from step {done} of {plan.steps}")
            advance(done)
        if checkpoint and done >= plan.steps:
            load_trainable(model, checkpoint)
            proof = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))["proof"]
        else:
            set_wrapping_policy(model)
            trainer = RegionTrainer(
                model,
                training_arguments(
                    config,
                    machine,
                    plan,
                    model=model,
                    half=half,
                    seed=seed,
                    work_dir=work_dir,
                    uneven=may_lack_gradients(model),
                ),
                samples,
                cached.collator if cached else collator,
                share=share_of(ranks, plan.micro_batch, config, machine),
                touch=touch_of(ranks, config, samples),
                projector_lr=config.projector_lr,
                checkpointing=config.gradient_checkpointing,
                step_log=step_log,
                run=run,
                prove=prove,
                advance=advance,
                turns=turns,
            )
            trainer.cached = cached
            if trainer.packing and config.frozen == "fp8":
                # Rounding to 8 bits magnifies what kernels round differently, so rows are compared before it begins.
                with torch.autocast(trainer.args.device.type, half, enabled=half is not None):
                    trainer.prove_packing(trainer.packing)
            with (
                checkpointed(model, config.gradient_checkpointing),
                frozen_format(model, region, config, progress.say),
                fast(trainer, speed or Speed(), progress.say),
            ):
                _train(trainer, checkpoint, half)
            proof = trainer.proof
    rows = ranks.broadcast(step_log.rows)
    return Outcome(proof, rows[0]["loss"], rows[-1]["loss"], sum(row["seconds"] for row in rows), rows)


def _train(trainer: RegionTrainer, checkpoint: Path | None, half: torch.dtype | None) -> None:
    """Run the trainer, and leave the model as it was in all but its weights."""
    model = trainer.model
    cache = model.config.use_cache
    own = set(vars(model))
    if sharding() == "deepspeed":
        # Its engine keeps gradients to itself, so the proof is made while each process has the whole model, with
        # masters in float32 still: the engine gives them the model's format, and keeps masters of its own.
        with torch.autocast(trainer.args.device.type, half, enabled=half is not None):
            proof = trainer.prove(model)
        trainer.prove = lambda _: proof
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        # Mixed precision puts a wrapped forward method on the model itself; without it the class's is back.
        for name in {"forward", "_original_forward"} & (set(vars(model)) - own):
            delattr(model, name)
        model.config.use_cache = cache
        model.zero_grad(set_to_none=True)
        if trainer.turns:
            trainer.turns.open_all()

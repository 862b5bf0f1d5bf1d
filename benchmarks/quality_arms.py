"""Four ways to tune one LVLM on the same samples in the same order, each measured on held-out ones all the while.

`hf` is transformers' Trainer with the model's plain modules and the weights of all layers, `liger` the same with
Liger's kernels; `all` and `uniform:25%` are striate's own training of these regions.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from striate import apply_region, load_model
from striate.config import DataSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.held_out import TrainingData, training_data
from striate.progress import Silent
from striate.selectors.spec.grammar import resolve
from striate.stages.train import train
from striate.training.batching.order import SeededOrder
from striate.training.inputs.step_inputs import StepInputs
from striate.training.metrics.metrics_log import read_rows
from striate.training.optimizers import parameter_groups
from striate.training.validation.held_out_loss import HeldOutLoss
from striate.training.validation.watch import VALIDATION, Watch

MAX_LENGTH, PROJECTOR_LR, SEED = 1024, 4e-4, 0
# The 64 samples of a step in one row, about 10,000 tokens, as the others have them in one batch.
PACK_TOKENS = 16_384
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        region: a SPEC; None for transformers' Trainer, which trains all layers.
        lr: the rate that the region study found best.
        liger: whether Liger's kernels are patched in.
    """

    region: str | None
    lr: float
    liger: bool = False


ARMS = {
    "hf": Arm(None, 8e-4),
    "liger": Arm(None, 8e-4, liger=True),
    "all": Arm("all", 8e-4),
    "uniform:25%": Arm("uniform:25%", 1.6e-3),
}


def trained(name: str, given: Namespace) -> dict[str, Any]:
    """Return the line of an arm: seconds of every step, and what was measured after some of them."""
    arm, begin = ARMS[name], time.perf_counter()
    places = tuple(str(file.parent) for file in sorted(given.data.glob("*/train.json")))
    section = DataSection(train=places, validate=given.held, max_train_samples=given.samples)
    data = training_data(section, [Path(place) for place in places], seed=SEED)
    settings = TrainSection(
        method="full",
        lr=arm.lr,
        projector_lr=PROJECTOR_LR,
        batch_size=given.batch,
        max_steps=given.steps,
        max_length=MAX_LENGTH,
        validate_every=given.every,
        # Writing checkpoints would be a part of striate's steps alone.
        save_steps=given.steps,
        packing=arm.region is not None,
    )
    rows = (with_striate if arm.region else with_trainer)(arm, data, settings, given)
    spent = list(itertools.accumulate(row["seconds"] for row in rows))
    points = [
        {"step": row["step"], "at_s": round(at, 2), **{key: round(one, 5) for key, one in row[VALIDATION].items()}}
        for row, at in zip(rows, spent, strict=True)
        if VALIDATION in row
    ]
    return {
        "name": name,
        "lr": arm.lr,
        "samples": len(data.samples),
        "held_out": len(data.held_out),
        "points": points,
        "seconds": [round(row["seconds"], 4) for row in rows],
        "beside_s": round(time.perf_counter() - begin - spent[-1] - sum(point["seconds"] for point in points), 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0, 2),
    }


def with_striate(arm: Arm, data: TrainingData, settings: TrainSection, given: Namespace) -> Rows:
    """Return the log of striate's own training."""
    loaded, out = load_model(given.model), Path(tempfile.mkdtemp())
    region = resolve(str(arm.region), loaded.model.config.get_text_config().num_hidden_layers)
    train(
        loaded.model,
        loaded.processor,
        region,
        data.samples,
        settings,
        MachineSection(micro_batch=given.batch, workers=given.workers, pack_tokens=PACK_TOKENS),
        seed=SEED,
        out=out / "checkpoint",
        work_dir=out / "work",
        log=out / "train_log.jsonl",
        base_path=str(given.model),
        held_out=data.held_out,
        progress=Silent(),
    )
    return read_rows(out / "train_log.jsonl", given.steps)


def with_trainer(arm: Arm, data: TrainingData, settings: TrainSection, given: Namespace) -> Rows:
    """Return the same of transformers' Trainer: weights in float32, bfloat16 where it computes on an accelerator."""
    loaded = load_model(given.model, dtype="float32")
    model, on_card = loaded.model, torch.cuda.is_available()
    apply_region(model, resolve("all", model.config.get_text_config().num_hidden_layers))
    if arm.liger:
        import_module("liger_kernel.transformers").apply_liger_kernel_to_llava(model=model)
    collator = Collator(loaded.processor, MAX_LENGTH, train=True)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=settings.batch_size,
        max_steps=given.steps,
        learning_rate=arm.lr,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=math.ceil(settings.warmup_ratio * given.steps),
        bf16=on_card,
        use_cpu=not on_card,
        dataloader_num_workers=given.workers,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
    )
    held_out = HeldOutLoss(data.held_out, collator, batch_size=settings.batch_size, workers=given.workers)
    trainer = OrderedTrainer(model=model, args=arguments, train_dataset=data.samples, data_collator=collator)
    watched = Watched(trainer, held_out, Watch(settings, given.steps))
    trainer.add_callback(watched)
    trainer.train()
    return watched.rows


class OrderedTrainer(Trainer):
    """transformers' Trainer, with striate's order of samples and the projector's own rate."""

    def _get_train_sampler(self, *given: Any) -> SeededOrder:
        return SeededOrder(self.train_dataset, SEED, self.args.per_device_train_batch_size)

    def create_optimizer(self, *given: Any) -> torch.optim.Optimizer:
        """Return AdamW with a group for the layers and one for the projector."""
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        rates = {"region": self.args.learning_rate, "projector": PROJECTOR_LR}
        decayed = {name for name, _ in self.model.named_parameters()}
        self.optimizer = kind(parameter_groups(self.model, rates, self.args.weight_decay, decayed), **settings)
        return self.optimizer


class Watched(TrainerCallback):
    """Times a Trainer's steps and measures held-out samples between them, as striate's own training does.

    Attributes:
        rows: one a step, with the keys of striate's log that are needed here.
    """

    def __init__(self, trainer: Trainer, held_out: HeldOutLoss, watch: Watch) -> None:
        """Take what trains, what measures and what says when."""
        self._trainer, self._held_out, self._watch = trainer, held_out, watch
        self._inputs = StepInputs([], trainer._prepare_inputs)
        self.rows: Rows = []

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Note what the step took, and measure where that is due."""
        due = self._watch.due(state.global_step)
        if due and torch.cuda.is_available():
            torch.cuda.synchronize()
        row: dict[str, Any] = {"step": state.global_step, "seconds": time.perf_counter() - self._since}
        if due:
            mixed = self._trainer.compute_loss_context_manager()
            row[VALIDATION] = self._held_out.measure(named["model"], self._inputs, mixed)
        self.rows.append(row)
        self._since = time.perf_counter()

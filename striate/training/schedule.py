"""What a training is to do: how many steps of how many samples, and Hugging Face's settings for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import TrainingArguments

from striate.config import MachineSection, TrainSection
from striate.errors import TrainingError
from striate.training.optimizers import NAMES

# In full LLaVA-NeXT's, and ten times that by adapters; not measured here.
VISION_RATES = {"full": 2e-6, "lora": 2e-5}


@dataclass(frozen=True)
class Plan:
    """How many samples make a step, and how many steps the training has."""

    samples: int
    batch_size: int
    micro_batch: int
    accumulation: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int

    @classmethod
    def of(cls, samples: int, config: TrainSection, machine: MachineSection, processes: int = 1) -> Plan:
        """Return the plan for `samples` samples; an epoch's last step takes what is left.

        A step's samples are dealt to `processes` processes: batch size = micro-batch x processes x accumulation. The
        micro-batch is the largest of at most `machine.micro_batch` samples that divides what falls to a process.

        Raises:
            TrainingError: the batch size is not a multiple of the processes.
        """
        size = config.batch_size
        share, rest = divmod(size, processes)
        if rest:
            raise TrainingError(
                f"train.batch_size {size} is not a multiple of {processes} processes",
                "a step of as many samples on every process",
                "choose another batch size, or a number of processes that divides it",
            )
        micro = next(count for count in range(min(machine.micro_batch, share), 0, -1) if share % count == 0)
        per_epoch = math.ceil(samples / size)
        steps = config.max_steps or math.ceil(config.epochs * per_epoch)
        warmup = math.ceil(config.warmup_ratio * steps)
        return cls(samples, size, micro, share // micro, per_epoch, steps, warmup)


def told_micro_batch(plan: Plan, machine: MachineSection) -> str:
    """Return in words that micro-batches are smaller than `machine.micro_batch`, to fit the batch; empty if not."""
    asked = min(machine.micro_batch, plan.micro_batch * plan.accumulation)
    if plan.micro_batch == asked:
        return ""
    return (
        f"micro-batches of {plan.micro_batch}: {asked} (machine.micro_batch) do not divide a step's {plan.batch_size}"
    )


def vision_rate(config: TrainSection) -> float:
    """Return the learning rate of the vision encoder: of `config`, or the default of the way in which it trains."""
    return config.vision_lr or VISION_RATES.get(config.vision, VISION_RATES["lora"])


def training_arguments(
    config: TrainSection,
    machine: MachineSection,
    plan: Plan,
    *,
    model: nn.Module,
    half: torch.dtype | None,
    seed: int,
    work_dir: Path,
    uneven: bool = False,
    saves: bool = True,
) -> TrainingArguments:
    """Return Hugging Face's settings for the config.

    `half` is the model's half-precision type, if it has one. `uneven` is true when some tensors that train take part in
    some steps or batches only: several processes then look for those that did not. With `saves` off no
    checkpoints are written.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    scheduler = "constant_with_warmup" if config.scheduler == "constant" and plan.warmup_steps else config.scheduler
    return TrainingArguments(
        output_dir=str(work_dir),
        # A whole step is one batch of the loader: see `batching.micro_batches`.
        per_device_train_batch_size=plan.batch_size,
        max_steps=plan.steps,
        optim=NAMES[config.optimizer],
        learning_rate=config.rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=scheduler,
        warmup_steps=plan.warmup_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if saves else "no",
        save_steps=config.save_steps,
        seed=seed,
        data_seed=seed,
        bf16=half is torch.bfloat16,
        fp16=half is torch.float16,
        use_cpu=on_cpu,
        dataloader_num_workers=machine.workers,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        report_to=list(machine.log_to) or "none",
        run_name=work_dir.absolute().parent.name,
        disable_tqdm=True,
        ddp_find_unused_parameters=uneven,
        # What they hold is frozen, and the same on all processes.
        ddp_broadcast_buffers=False,
    )

"""Visual instruction tuning of a region: Hugging Face's Trainer, told what it may touch and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.models.structure.anatomy import PROJECTOR, component_of, find_anatomy
from striate.storage.atomic import cannot_write
from striate.training.async_metrics import DeferredMetrics, Facts
from striate.training.batching.micro_batches import Share, StepCollator, StepSampler, Touch, stand_in
from striate.training.batching.order import SeededOrder
from striate.training.checkpoints import load_trainable, mark_complete, save_trainable
from striate.training.distributed.gradient_sync import GradientSync
from striate.training.distributed.sharding import may_lack_gradients
from striate.training.lisa import OPEN_LAYERS, LisaSchedule
from striate.training.loss import answer_loss
from striate.training.metrics_log import MetricsLog
from striate.training.packing.packing_check import Packing, check_packing
from striate.training.precision import FrozenModules
from striate.training.step_inputs import StepTrainer

Proof = Callable[[nn.Module], str]


class RegionTrainer(StepTrainer):
    """HF's Trainer with two learning rates, frozen modules in eval mode, and the loss on answers only."""

    optimizer: Any

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        samples: Sequence[Sample],
        collator: Collator,
        *,
        share: Share,
        touch: Touch,
        projector_lr: float,
        checkpointing: bool,
        step_log: MetricsLog,
        run: dict[str, Any],
        prove: Proof,
        advance: Callable[[int], None],
        turns: LisaSchedule | None = None,
    ) -> None:
        """Take a model whose chosen parameters are open already.

        Args:
            model: plain, or wrapped by PEFT.
            args: Hugging Face's settings; `learning_rate` is that of the region.
            samples: the training set.
            collator: encodes, joins and packs samples.
            share: which samples of a step are this process's, and how they are batched.
            touch: which batches must have a picture (see `StepCollator`).
            projector_lr: the learning rate of the projector.
            checkpointing: whether the model's decoder layers are set to recompute activations.
            step_log: gets a line a step.
            run: what a run that is continued must share (see `training.resume.identity`).
            prove: called with the prepared model before the first step; returns the proof in words.
            advance: called with 1 after every step.
            turns: which layers are open in each step; None leaves the whole region open.
        """
        # Set before the parent is built: it may take the model's device and wrap it.
        args.device  # noqa: B018
        args._n_gpu = min(args.n_gpu, 1)
        step_collator = StepCollator(collator, share, stand_in(samples), touch)
        super().__init__(model=model, args=args, train_dataset=list(samples), data_collator=step_collator)
        self.step_collator = step_collator
        self.step_sampler = StepSampler(SeededOrder(samples, args.seed, args.per_device_train_batch_size), share)
        self.packing = Packing(model) if share.pack_tokens is not None else None
        self.remove_callback(PrinterCallback)
        self.add_callback(_Watch(self))
        self.model_accepts_loss_kwargs = True
        self.projector_lr = projector_lr
        self.step_log = step_log
        self.readings = DeferredMetrics(self.write_step, late=int(args.device.type == "cuda"))
        self.run = run
        self.prove = prove
        self.advance = advance
        self.proof = ""
        self.packing_proof = ""
        self.rates: dict[str, float] = {}
        self.turns = turns
        self.gradient_sync: GradientSync | None = None
        if turns and self.accelerator.num_processes > 1:
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            self.gradient_sync = GradientSync(trained, may_lack_gradients(model))
            # Prepared as for evaluation a model is not wrapped by DistributedDataParallel.
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.checkpointing = checkpointing
        self.note_frozen()

    def note_frozen(self) -> None:
        """Find out anew which modules are frozen; all others are put in training mode."""
        self.model.train()
        self.frozen = FrozenModules(self.model, self.checkpointing)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the loss of a step after its backward passes; gradients are those of all processes then."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.turns and self.gradient_sync:
            self.turns.check_gradients()
            self.gradient_sync.average_gradients()
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the answer loss, normalised over the answer tokens of the whole accumulated batch."""
        self.frozen.set_eval()
        loss = answer_loss(model, inputs, num_items_in_batch)
        processes = self.accelerator.num_processes
        # The processes' gradients are averaged; the tokens were counted over all of them.
        return loss * processes if processes > 1 and num_items_in_batch is not None else loss

    def prove_packing(self, packing: Packing) -> None:
        """Note how near the shortest and longest samples of the first step, in one row, come to each alone; once.

        Raises:
            TrainingError: they differ: this model can't be trained on packed rows.
        """
        if self.packing_proof:
            return
        order = self.step_sampler.order
        first = list(order)[: order.batch_size]
        chosen = [self.train_dataset[index] for index in dict.fromkeys([*first[:2], *first[-2:]])]
        collator = getattr(self.step_collator.collator, "plain", self.step_collator.collator)
        chosen_items = collator.encode_each(chosen)
        self.packing_proof = check_packing(self.model, packing, collator, chosen_items, collator.max_length)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW with a group for the region and one for the projector."""
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(self._groups(), **settings)
        return self.optimizer

    def facts(self) -> Facts:
        """Return what the log's line says of the step whose work has just been handed out."""
        more: dict[str, Any] = {OPEN_LAYERS: list(self.turns.open_layers)} if self.turns else {}
        rate, projector_rate = self.rates.get("region", 0.0), self.rates.get("projector", 0.0)
        return Facts(self.state.global_step, rate, projector_rate, more, time.perf_counter(), self.count_tokens())

    def write_step(self, facts: Facts, loss: float, norm: float | None) -> None:
        """Write one step to the log.

        Raises:
            TrainingError: loss or gradient is not finite.
        """
        # The gradient scaler of float16 skips a step that overflows, and halves its scale.
        norm = 0.0 if norm is None else norm
        norm = None if self.args.fp16 and not math.isfinite(norm) else norm
        self.step_log.write(facts.step, loss, norm, facts.lr, facts.projector_lr, now=facts.at, **facts.more)
        self.advance(1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Do nothing: steps are logged by `write_step`, and summaries of Hugging Face's own are left out."""

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: counting would walk over all parameters in every step."""
        return 0

    def _groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups: region and projector, each with and without weight decay."""
        anatomy = find_anatomy(self.model)
        decayed = set(self.get_decay_parameter_names(self.model)) if self.args.weight_decay else set()
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                part = "projector" if component_of(anatomy, name) == PROJECTOR else "region"
                groups.setdefault((part, name in decayed), []).append(parameter)
        rates = {"region": self.args.learning_rate, "projector": self.projector_lr}
        return [
            {"params": parameters, "name": part, "lr": rates[part], "weight_decay": self.args.weight_decay * decay}
            for (part, decay), parameters in groups.items()
        ]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write only what trains: all else is in the base model."""
        save_trainable(self.model, Path(output_dir or self.args.output_dir), self.trained)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read what `_save` wrote."""
        load_trainable(self.model, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, and last of all the file that makes it count."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except OSError as error:
            raise cannot_write(folder, error) from error
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(folder, {**self.run, "proof": self.proof})


class _Watch(TrainerCallback):
    """Proves what trains before the first step, gives layers their turns, and notes the learning rates of each step."""

    def __init__(self, trainer: RegionTrainer) -> None:
        """Keep the trainer to report to."""
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prove that exactly the chosen tensors receive gradients, with weights and modes as training has them."""
        self._trainer.model.train()
        self._trainer.frozen.set_eval()
        if self._trainer.gradient_sync:
            self._trainer.gradient_sync.broadcast_parameters()
        self._trainer.proof = self._trainer.prove(self._trainer.model)
        if self._trainer.packing:
            self._trainer.prove_packing(self._trainer.packing)
            self._trainer.proof += f" {self._trainer.packing_proof}"
        if self._trainer.args.process_index:
            # Every process begins with the same weights; from here on its dropout is its own.
            torch.manual_seed(self._trainer.args.seed * 1_000_003 + self._trainer.args.process_index)
        self._trainer.step_log.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the steps whose numbers have not been read yet."""
        self._trainer.readings.flush()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the layers whose turn the coming step is."""
        turns = self._trainer.turns
        if turns and turns.open_for_step(state.global_step, self._trainer.optimizer):
            self._trainer.note_frozen()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the learning rates that the coming update uses, and prove that only open layers are in it."""
        if self._trainer.turns:
            self._trainer.turns.check_gradients()
        self._trainer.rates = {group["name"]: group["lr"] for group in kwargs["optimizer"].param_groups}

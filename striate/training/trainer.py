"""Hugging Face's Trainer for a region: whole optimizer steps as batches, frozen modules in eval mode, two rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from striate.data.label_mask import IGNORED
from striate.data.packing import Batch
from striate.errors import DataError
from striate.training.batching.micro_batches import NumberedSamples, StepCollator, StepSampler
from striate.training.batching.step_loader import StepLoader
from striate.training.callbacks import LisaCallback, MetricsCallback, Proof, ProofCallback, WholeStepsCallback
from striate.training.checkpointing.checkpoints import COMPLETE, CheckpointStore
from striate.training.checkpointing.resumable_trainer import ResumableTrainer
from striate.training.checkpointing.trained_weights import norm_of, save_trainable
from striate.training.distributed.gradient_sync import GradientSync
from striate.training.distributed.ranks import Ranks
from striate.training.distributed.sharding import may_lack_gradients, prefetch_whole_layers
from striate.training.inputs.step_inputs import StepInput, StepInputs, StepTally
from striate.training.lisa import LisaSchedule
from striate.training.loss import Objective
from striate.training.metrics.metrics_log import MetricsLog, reported
from striate.training.optimizers import parameter_groups
from striate.training.precision import FrozenModules
from striate.training.validation.validation import Validation
from striate.training.validation.watch import VALIDATION, Watch
from striate.training.whole_steps import WholeSteps


class RegionTrainer(ResumableTrainer):
    """Takes a list of micro-batches for a step: forward and backward one by one, gradients exchanged at the last.

    `gradient_accumulation_steps` of its arguments is 1. What else happens in a step is a callback's
    (`training.callbacks`) or a step input's (`training.inputs.step_inputs`).

    Attributes:
        inputs: what happens to a micro-batch before the model takes it.
    """

    _globalstep_last_logged: int

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        sampler: StepSampler,
        collator: StepCollator,
        inputs: Sequence[StepInput],
        *,
        log: MetricsLog,
        advance: Callable[[int], None],
        proofs: Sequence[Proof],
        projector_lr: float,
        vision_lr: float,
        checkpointing: bool,
        store: CheckpointStore,
        objective: Objective,
        name_of: Callable[[int], str],
        longest: int | None = 0,
        lisa: LisaSchedule | None = None,
        whole: WholeSteps | None = None,
        on_turn: Callable[[], None] = lambda: None,
        validation: Validation | None = None,
    ) -> None:
        """Take a model whose chosen parameters are open already.

        Args:
            model: plain, or wrapped by PEFT.
            args: Hugging Face's settings; `learning_rate` is that of the region.
            sampler: this process's share of every step.
            collator: makes a share's micro-batches.
            inputs: in their order.
            log: gets a line a step.
            advance: called with 1 after every step.
            proofs: made with the prepared model before the first step; kept in every checkpoint.
            projector_lr: the learning rate of the projector.
            vision_lr: that of the vision encoder.
            checkpointing: whether the model's decoder layers are set to recompute activations.
            store: where checkpoints go.
            objective: what is minimised.
            name_of: what the log calls a sample of a number.
            longest: tokens of the longest sample that earlier sessions learned from; None where that is not known.
            lisa: which layers are open in each step; None leaves the whole region open.
            whole: in which steps all layers compute image tokens; None for a model without such steps.
            on_turn: called when other layers are open than before, or layers compute otherwise.
            validation: what is measured beside the steps, and when.
        """
        # The devices are looked up before the parent is built: it may take the model's device and wrap it.
        _use_one_device(args)
        dataset: Any = NumberedSamples(sampler.order.samples)
        super().__init__(model=model, args=args, train_dataset=dataset, data_collator=collator)
        self.remove_callback(PrinterCallback)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                # The folder of checkpoints, its default, does not stay.
                callback.logging_dir = str(log.path.absolute().parent / "tensorboard")
        if self.is_deepspeed_enabled:
            prefetch_whole_layers(model, self.accelerator.state.deepspeed_plugin.deepspeed_config)
        self.model_accepts_loss_kwargs = True
        self.sampler, self.collator = sampler, collator
        self.inputs = StepInputs(inputs, self._prepare_inputs)
        self._rates = {"region": args.learning_rate, "projector": projector_lr, "vision": vision_lr}
        self._checkpointing = checkpointing
        self._log, self._store, self._validation = log, store, validation
        self._objective, self._whole = objective, whole
        self._trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._start_norm = norm_of(model, self._trained)
        self._tally = StepTally(name_of, longest)
        self._loader: StepLoader | None = None
        self._find_frozen()
        self._proofs = ProofCallback(proofs, self._enter_modes)
        self._metrics = MetricsCallback(
            log, lisa, advance, late=int(args.device.type == "cuda"), fp16=args.fp16, report=self._report
        )
        self._lisa = LisaCallback(lisa, self._own_sync(), partial(self._turn, on_turn)) if lisa else None
        turns = WholeStepsCallback(whole, on_turn) if whole else None
        for callback in (self._proofs, self._metrics, self._lisa, turns):
            if callback:
                self.add_callback(callback)

    @property
    def sharded(self) -> bool:
        """Whether the processes hold parts of each weight, and so must run the same modules in turn."""
        return self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)

    @property
    def proof(self) -> str:
        """What trains, in words."""
        return self._proofs.proof

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of this process's shares; Accelerate would deal them again."""
        samples: Any = self.train_dataset
        workers, pins = self.args.dataloader_num_workers, self.args.dataloader_pin_memory
        self._loader = StepLoader.of(samples, self.sampler, self.collator, workers, pin_memory=pins)
        return self._loader

    def end_workers(self) -> None:
        """End the processes that encode samples."""
        if self._loader is not None:
            self._loader.end_workers()

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the loss of the step's micro-batches, after their backward passes."""
        # Going through all modules takes a while, and what is frozen must leave training mode again.
        if not model.training:
            model.train()
        batches = self._levelled(inputs)
        total = torch.zeros((), device=self.args.device)
        for index, batch in enumerate(batches):
            last = index + 1 == len(batches)
            self.accelerator.gradient_state._set_sync_gradients(last)
            self._tally.add(batch)
            with self._no_sync(model, last), self.inputs.on_device(batch) as ready:
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, ready, num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss)
            total += loss.detach()
        if self._lisa:
            self._lisa.after_backward()
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the loss of the objective, normalised over the answer tokens of the whole accumulated batch."""
        self._frozen.set_eval()
        loss = self._objective.loss(model, inputs, num_items_in_batch)
        processes = self.accelerator.num_processes
        # The processes' gradients are averaged; the tokens were counted over all of them.
        return loss * processes if processes > 1 and num_items_in_batch is not None else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW with a group for the region and one for the projector."""
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            decay = self.args.weight_decay
            decayed = self.get_decay_parameter_names(self.model) if decay else ()
            self.optimizer = kind(parameter_groups(self.model, self._rates, decay, frozenset(decayed)), **settings)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Do nothing: a callback logs steps, and summaries of Hugging Face's own are left out."""

    def _report(self, row: Mapping[str, Any]) -> None:
        """Hand a row of the log to the loggers of `machine.log_to`, by Hugging Face's names."""
        if self.args.report_to:
            state = copy(self.state)
            state.global_step = row["step"]
            self.callback_handler.on_log(self.args, state, self.control, reported(row))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: counting would walk over all parameters in every step."""
        return 0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what trains, on any number of processes: all of them must ask."""
        save_trainable(self.model, Path(output_dir or self.args.output_dir), self._trained, self._start_norm)

    def _find_frozen(self) -> None:
        """Look up which modules are frozen now; all others are put in training mode."""
        self.model.train()
        self._frozen = FrozenModules(self.model, self._checkpointing)

    def _enter_modes(self) -> None:
        """Put modules in training mode, and what is frozen out of it."""
        self.model.train()
        self._frozen.set_eval()

    def _turn(self, on_turn: Callable[[], None]) -> None:
        """Take note that other layers are open."""
        self._find_frozen()
        on_turn()

    def _own_sync(self) -> GradientSync | None:
        """Return what averages gradients of layers that take turns, in place of DistributedDataParallel."""
        if self.accelerator.num_processes == 1:
            return None
        # Prepared as for evaluation a model is not wrapped by DistributedDataParallel.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return GradientSync(trained, may_lack_gradients(self.model))

    def _counted(self) -> tuple[int, int] | torch.Tensor:
        """Return tokens and slots since the last call; an unread tensor (2,) where several processes count."""
        counts = self._tally.take()
        if self.accelerator.num_processes == 1:
            return counts
        summed: torch.Tensor = self.accelerator.reduce(
            torch.tensor(counts).to(self.args.device, non_blocking=True), "sum"
        )
        return summed

    def _parts(self) -> dict[str, torch.Tensor]:
        """Return what the loss since the last call is made of, by name, unread."""
        parts = self._objective.take_parts()
        one = self.accelerator.num_processes == 1
        return parts if one else {name: self.accelerator.reduce(part, "sum") for name, part in parts.items()}

    def _levelled(self, batches: list[Batch]) -> list[Batch]:
        """Return as many batches as every other process has, where they must run alike."""
        if not self.sharded or self.accelerator.num_processes == 1:
            return batches
        count = torch.tensor([len(batches)], device=self.args.device)
        most = int(self.accelerator.gather(count).max())
        # The last batch of all processes has gradients to exchange, so what is added goes first.
        return [self.collator.empty() for _ in range(most - len(batches))] + batches

    def _no_sync(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Return a context in which processes don't exchange gradients, before the last micro-batch."""
        if last or self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return nullcontext()
        return self.accelerator.no_sync(model)

    def _prepare_input(self, data: Any) -> Any:
        """Return the data on the device, copied while that computes."""
        if isinstance(data, torch.Tensor) and not self.is_deepspeed_enabled:
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | int | None:
        """Return the answer tokens of the whole step, those of other processes included.

        Raises:
            DataError: a sample of the step can't be used; what was learned before is kept in a checkpoint.
        """
        for batches in batch_samples:
            if isinstance(batches, DataError):
                raise self._stopped_by(batches)
        labels = [batch["labels"][:, 1:] for batches in batch_samples for batch in batches]
        count = sum(int((label != IGNORED).sum()) for label in labels)
        if self.accelerator.num_processes == 1:
            # A step whose samples are all broken has no answers.
            return max(1, count)
        return self.accelerator.reduce(torch.tensor(count).to(device, non_blocking=True), "sum")

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """Take the step's numbers unread; whatever is saved waits for them, so that no bad checkpoint is made."""
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            one = self.accelerator.num_processes == 1
            loss = tr_loss if one else self.accelerator.reduce(tr_loss, "mean")
            self._log_step(loss, grad_norm)
            # Not by subtraction, which leaves what is no number as it is.
            tr_loss.zero_()
            self._globalstep_last_logged = self.state.global_step
            self.control.should_log = False
        if self.control.should_save:
            self._metrics.flush()
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _log_step(self, loss: torch.Tensor, grad_norm: Any) -> None:
        """Hand the numbers of the step on, unread where nothing is measured after it."""
        step, tokens, skipped = self.state.global_step, self._counted(), self._tally.take_skipped()
        more: dict[str, Any] = {**self._parts(), **({"skipped": skipped} if skipped else {})}
        more |= self._whole.noted(step) if self._whole else {}
        if self._validation is None or not self._validation.watch.due(step):
            self._metrics.add(step, loss, grad_norm, tokens, more)
            return
        self._metrics.flush()
        loss.item()
        ended = time.perf_counter()
        measured = self._validation.after(step, self.model_wrapped, self.inputs, self.compute_loss_context_manager())
        self._metrics.add(step, loss, grad_norm, tokens, {**more, VALIDATION: measured}, ended)
        self._metrics.flush(ended)
        self._follow(self._validation.watch, step, measured)
        # What was measured is no part of the next step's time.
        self._log.start()

    def _follow(self, watch: Watch, step: int, measured: Mapping[str, float]) -> None:
        """Keep the weights if they are the best so far and these are wanted; stop if that is due."""
        if watch.add(step, measured) and watch.keeps_best:
            with self._store.writing(step), Ranks.launched().together():
                self.save_model(str(self._store.emptied_best()))
        if watch.stops:
            self.control.should_training_stop = True

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, and last of all the manifest that makes it count."""
        step, ranks = self.state.global_step, Ranks.launched()
        with self._store.writing(step):
            with ranks.together():
                super()._save_checkpoint(model, trial)
            longest = self._tally.longest
            longest = None if longest is None else int(ranks.maximum(longest, self.args.device))
            with ranks.together():
                if self.args.should_save:
                    self._store.add_best(step)
                    self._store.complete(step, self._log.rows, self.proof, longest)

    def _stopped_by(self, error: DataError) -> DataError:
        """Return the error for a sample that can't be used, after writing a checkpoint of the steps before it."""
        step = self.state.global_step
        if step and self.accelerator.num_processes == 1 and not (self._store.folder(step) / COMPLETE).is_file():
            self._metrics.flush()
            self._save_checkpoint(self.model, None)
        return DataError(
            f"training stopped at step {step + 1}: {error.given}",
            error.allowed,
            "mend the sample in its place (without it the order of all is another), raise train.max_length if it is too"
            " long, or leave it out with --set data.broken=skip: the same command then goes on from step"
            f" {step}, with --overwrite where max_length changes or an earlier stage is out of date",
        )


def _use_one_device(args: TrainingArguments) -> None:
    """Let the arguments set their devices up, and take one of them: striate's processes are a launcher's."""
    _ = args.device
    args._n_gpu = min(args.n_gpu, 1)

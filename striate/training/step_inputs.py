"""Hugging Face's Trainer with whole optimizer steps as its batches: their micro-batches may differ in number."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, save_fsdp_optimizer
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from striate.data.encoding import IGNORED
from striate.data.packing import FILLER, SEGMENTS, Batch
from striate.models.interventions.model_rule import reading_batch
from striate.models.interventions.vision_feature_tap import PIXELS
from striate.training.async_metrics import DeferredMetrics, Facts
from striate.training.batching.label_positions import ANSWERS, find_answers
from striate.training.batching.micro_batches import StepCollator, StepSampler
from striate.training.caching.vision_features import SHAPES, CachedFeatures
from striate.training.packing.packing_check import Packing
from striate.training.step_hints.attention_mask import mask_known
from striate.training.step_hints.image_embeds import PicturePlaces


class StepLoader(DataLoader[Any]):
    """Loads one process's share of every step, prepared by workers ahead of time."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch`."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class StepTrainer(Trainer):
    """Takes a list of micro-batches for a step, forward and backward one by one, gradients exchanged at the last.

    `gradient_accumulation_steps` of its arguments is 1. Attributes that a subclass sets before training:

    Attributes:
        step_sampler: the shares of the steps.
        step_collator: makes a share's micro-batches.
        answer_multiple: of the answers of a batch, to reach which some are added that count for nothing.
        places: puts pictures among embeddings; None leaves that to the model.
        readings: of losses and gradient norms.
        packing: how the model reads packed rows; None for padded batches.
        kept: how the model takes what is kept of its samples; None where it reads them whole.
    """

    step_sampler: StepSampler
    step_collator: StepCollator
    readings: DeferredMetrics
    packing: Packing | None = None
    cached: CachedFeatures | None = None
    answer_multiple = 1
    places: PicturePlaces | None = None
    _globalstep_last_logged: int
    real_tokens = 0
    slots = 0

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of this process's shares; Accelerate would deal them again."""
        workers = self.args.dataloader_num_workers
        return StepLoader(
            self.train_dataset,
            batch_sampler=self.step_sampler,
            collate_fn=self.step_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=workers > 0,
        )

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
            with self._waiting(model, last), self._on_device(batch) as ready:
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, ready, num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    @property
    def sharded(self) -> bool:
        """Whether the processes hold parts of each weight, and so must run the same modules in turn."""
        kind = self.accelerator.distributed_type
        return kind in (DistributedType.FSDP, DistributedType.DEEPSPEED)

    def count_tokens(self) -> tuple[int, int] | torch.Tensor:
        """Return the tokens of samples and those with padding since the last call; unread (2,) of several processes."""
        found = self.real_tokens, self.slots
        self.real_tokens = self.slots = 0
        if self.accelerator.num_processes == 1:
            return found
        summed: torch.Tensor = self.accelerator.reduce(
            torch.tensor(found).to(self.args.device, non_blocking=True), "sum"
        )
        return summed

    def facts(self) -> Facts:
        """Return what is known of the step whose work has just been handed out."""
        raise NotImplementedError

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """Take the step's numbers unread; whatever is saved waits for them, so that no bad checkpoint is made."""
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            one = self.accelerator.num_processes == 1
            self.readings.add(self.facts(), tr_loss if one else self.accelerator.reduce(tr_loss, "mean"), grad_norm)
            # Not by subtraction, which leaves what is no number as it is.
            tr_loss.zero_()
            self._globalstep_last_logged = self.state.global_step
            self.control.should_log = False
        if self.control.should_save:
            self.readings.flush()
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what trains, on any number of processes: all of them must ask."""
        self._save(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write the optimizer's state; where it is sharded without the model's weights, which `_save` writes."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Read what was written; Hugging Face's reads it to the device, which older ones can't do on several CPUs."""
        if checkpoint is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        for part, name in ((self.optimizer, OPTIMIZER_NAME), (self.lr_scheduler, SCHEDULER_NAME)):
            part.load_state_dict(torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True))

    def _levelled(self, batches: list[Batch]) -> list[Batch]:
        """Return as many batches as every other process has, where they must run alike."""
        if not self.sharded or self.accelerator.num_processes == 1:
            return batches
        count = torch.tensor([len(batches)], device=self.args.device)
        most = int(self.accelerator.gather(count).max())
        # The last batch of all processes has gradients to exchange, so what is added goes first.
        return [self.step_collator.empty() for _ in range(most - len(batches))] + batches

    def _waiting(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which processes don't exchange gradients, before the last micro-batch."""
        if last or self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(model)

    @contextlib.contextmanager
    def _on_device(self, batch: Batch) -> Iterator[Batch]:
        """Yield the batch on the device; the samples of a packed row stay apart until its backward pass is done."""
        slots = batch["input_ids"].numel()
        self.slots += slots
        self.real_tokens += int(batch["attention_mask"].sum()) if "attention_mask" in batch else slots
        self.real_tokens -= int(batch.get(FILLER, 0))
        batch = {name: value for name, value in batch.items() if name != FILLER}
        # Segments and shapes are read on the CPU: asking the device for them would make it wait.
        asked = {name: batch[name] for name in (SEGMENTS, SHAPES) if name in batch}
        packed = self.packing if SEGMENTS in batch else None
        with contextlib.ExitStack() as stack:
            ready = packed.prepared(batch) if packed else batch
            if "labels" in ready:
                answers = find_answers(ready["labels"], self.answer_multiple)
                ready = {**{name: value for name, value in ready.items() if name != "labels"}, ANSWERS: answers}
            taken = {**self._prepare_inputs(ready), **asked}
            if packed:
                taken = stack.enter_context(packed.attending(taken))
            elif "attention_mask" in batch:
                stack.enter_context(mask_known(batch["attention_mask"]))
            lengths = batch[SEGMENTS][:, 0].tolist() if packed else None
            stack.enter_context(reading_batch(self.model, batch["input_ids"], self.args.device, lengths))
            if self.cached:
                taken = stack.enter_context(self.cached.serving(taken))
            if self.places and PIXELS in taken:
                stack.enter_context(self._placing(self.places, taken, batch["input_ids"]))
            yield taken

    def _placing(
        self, places: PicturePlaces, taken: Batch, ids: torch.Tensor
    ) -> contextlib.AbstractContextManager[None]:
        """Return a context in which pictures are put at known places; at the first batch that is compared."""
        if not places.checked:
            with self.compute_loss_context_manager():
                places.check(self.model, {name: value for name, value in taken.items() if name != ANSWERS}, ids)
        return places.placing(ids)

    def _prepare_input(self, data: Any) -> Any:
        """Return the data on the device, copied while that computes."""
        if isinstance(data, torch.Tensor) and not self.is_deepspeed_enabled:
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | int | None:
        """Return the answer tokens of the whole step, those of other processes included."""
        labels = [batch["labels"][:, 1:] for batches in batch_samples for batch in batches]
        count = sum(int((label != IGNORED).sum()) for label in labels)
        if self.accelerator.num_processes == 1:
            return count
        return self.accelerator.reduce(torch.tensor(count).to(device, non_blocking=True), "sum")

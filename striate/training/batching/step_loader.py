"""The loader of a training's steps: each process's share, encoded by worker processes ahead of time."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from striate.training.batching.micro_batches import StepCollator, StepSampler
from striate.training.batching.workers import worker_options


class StepLoader(DataLoader[Any]):
    """Loads one process's share of every step, prepared by workers ahead of time."""

    @classmethod
    def of(
        cls, samples: Dataset[Any], sampler: StepSampler, collator: StepCollator, workers: int, *, pin_memory: bool
    ) -> StepLoader:
        """Return the loader of a process's shares of an epoch, with as many workers as there are steps at most."""
        # More than there are steps would start for nothing.
        workers = min(workers, len(sampler))
        return cls(
            samples,
            batch_sampler=sampler,
            collate_fn=collator,
            **worker_options(workers),
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            # A loader draws a number when it begins; drawn from torch's own, dropout would depend on workers.
            generator=torch.Generator(),
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch`."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]

    def end_workers(self) -> None:
        """End the worker processes: those left to the garbage collector never hear of it, and are waited for."""
        iterator: Any = self._iterator
        if iterator is not None:
            iterator._shutdown_workers()
            self._iterator = None

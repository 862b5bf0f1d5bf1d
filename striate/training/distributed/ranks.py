"""Ranks: which of several training processes this one is, and what they broadcast to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from striate.errors import StriateError, TrainingError, first_line
from striate.storage.launcher import launch

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among those that `accelerate launch` or `torchrun` started; rank 0 writes all files.

    Attributes:
        rank: of this process, from 0.
        world_size: how many processes there are.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def launched(cls) -> Ranks:
        """Return what the launcher's environment says; one process without a launcher."""
        here = launch()
        return cls(here.rank, here.world_size)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Join the process group, once; on CUDA each process takes the device of its local rank."""
        if self.world_size > 1 and not torch.distributed.is_initialized():
            from accelerate import PartialState

            PartialState(cpu=device.type == "cpu")

    def leave(self) -> None:
        """Leave the process group when all have come here."""
        if self.world_size > 1 and torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    def barrier(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def broadcast(self, value: Value) -> Value:
        """Return the main process's `value` on every process."""
        if self.world_size == 1:
            return value
        objects = [value]
        torch.distributed.broadcast_object_list(objects, src=0)
        return objects[0]

    def maximum(self, value: float, device: torch.device) -> float:
        """Return the largest `value` of all processes, exchanged on `device`."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value, device=device if device.type == "cuda" else "cpu")
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return float(largest)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Context whose end all processes reach together, also those with an error: one's error ends all of them.

        Raises:
            TrainingError: another process had an error; this one raises its own as it is.
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        texts: list[str | None] = [f"process {self.rank}: {first_line(own)}" if own else None]
        if self.world_size > 1:
            mine, texts = texts[0], [None] * self.world_size
            torch.distributed.all_gather_object(texts, mine)
        if own:
            raise own
        if others := [text for text in texts if text]:
            raise TrainingError(
                f"another process of this training failed, {others[0]}",
                "processes that all do their part",
                "see what that process says; the same command goes on from the last whole checkpoint",
            )

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of all processes' `values`, a tensor of one shape on each."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def on_main(self, work: Callable[[], Value]) -> Value:
        """Return what `work` returns on the main process, which alone does it, on every process.

        Raises:
            StriateError: as `work` does, on every process, so that none waits in vain.
        """
        if self.world_size == 1:
            return work()
        result: Any = None
        if self.is_main:
            try:
                result = work()
            except StriateError as error:
                result = error
        result = self.broadcast(result)
        if isinstance(result, StriateError):
            raise result
        value: Value = result
        return value

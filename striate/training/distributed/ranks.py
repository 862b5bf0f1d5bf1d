"""Several processes that train one model together: which one this is, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import nn

from striate.errors import StriateError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """One of several processes that `accelerate launch` or `torchrun` started; the first one writes all files.

    Attributes:
        index: of this process, from 0.
        count: how many there are.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def launched(cls) -> Processes:
        """Return what the launcher's environment says; one process without a launcher."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(int(os.environ.get("RANK", "0")), count) if count > 1 else cls()

    @property
    def writes(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.index == 0

    def join(self, device: torch.device) -> None:
        """Meet the other processes, once; on CUDA each takes the device of its place on this machine."""
        if self.count > 1 and not torch.distributed.is_initialized():
            from accelerate import PartialState

            PartialState(cpu=device.type == "cpu")

    def leave(self) -> None:
        """Part from the other processes, when all have come here."""
        if self.count > 1 and torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def share(self, value: Any) -> Any:
        """Return the first process's `value` on every process."""
        if self.count == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def first(self, work: Callable[[], Value]) -> Value:
        """Return what `work` returns on the first process, which alone does it, on every process.

        Raises:
            StriateError: as `work` does, on every process: none waits in vain.
        """
        value: Any = None
        if self.writes:
            try:
                value = work()
            except StriateError as error:
                value = error
                if self.count == 1:
                    raise
        value = self.share(value)
        if isinstance(value, StriateError):
            raise value
        found: Value = value
        return found


@contextmanager
def whole(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield all of `tensor`, whose parts may lie on several processes, each of which must ask for it."""
    if hasattr(tensor, "ds_id"):
        with import_module("deepspeed").zero.GatheredParameters([tensor]):
            yield tensor.data
    elif hasattr(tensor, "full_tensor"):
        yield tensor.full_tensor()
    else:
        yield tensor


def copy_into(tensor: nn.Parameter, stored: torch.Tensor) -> None:
    """Set `tensor`, whose parts may lie on several processes, to `stored`."""
    if hasattr(tensor, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        local: Any = tensor.data
        stored = stored.to(device=local.device, dtype=local.dtype)
        local.copy_(distribute_tensor(stored, local.device_mesh, local.placements))
    else:
        tensor.data.copy_(stored)


def unshard(model: nn.Module, names: set[str] | None, dtypes: Mapping[str, torch.dtype]) -> None:
    """Put whole parameters in the place of sharded ones, on the CPU of the first process; every process must ask.

    The model is then good for saving, not for another forward pass.

    Args:
        model: as training leaves it.
        names: of the parameters; None for all.
        dtypes: number formats to give some of them.
    """
    first = Processes.launched().writes
    found: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            full = f"{path}.{name}".lstrip(".")
            if parameter is None or (names is not None and full not in names):
                continue
            if id(parameter) not in found:
                with whole(parameter) as tensor:
                    made = tensor.detach().to("cpu", dtypes.get(full, tensor.dtype), copy=True) if first else None
                found[id(parameter)] = parameter if made is None else nn.Parameter(made, parameter.requires_grad)
            module._parameters[name] = found[id(parameter)]
        # FSDP2 gives each module that it shards a class of its own, made of its own and the module's.
        if first and type(module).__name__.startswith("FSDP") and len(type(module).__bases__) == 2:
            module.__class__ = type(module).__bases__[1]

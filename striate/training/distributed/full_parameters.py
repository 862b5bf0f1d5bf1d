"""Full parameters of sharded models (FSDP2, ZeRO-3): gathered for reading and saving, and written into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from striate.training.distributed.ranks import Ranks
from striate.training.distributed.sharding import sharding


@contextmanager
def gathered(parameter: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the full `parameter`, whose shards may lie on several processes, each of which must ask for it."""
    if hasattr(parameter, "ds_id"):
        with import_module("deepspeed").zero.GatheredParameters([parameter]):
            yield parameter.data
    elif hasattr(parameter, "full_tensor"):
        yield parameter.full_tensor()
    else:
        yield parameter


def copy_into(parameter: nn.Parameter, stored: torch.Tensor) -> None:
    """Set `parameter`, whose shards may lie on several processes, to `stored`."""
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        local: Any = parameter.data
        stored = stored.to(device=local.device, dtype=local.dtype)
        local.copy_(distribute_tensor(stored, local.device_mesh, local.placements))
    else:
        parameter.data.copy_(stored)


def unshard(model: nn.Module, dtypes: Mapping[str, torch.dtype], trained: set[str]) -> None:
    """Put full parameters in the place of shards, on the CPU of the main process; every process must ask.

    The model is then good for saving, not for another forward pass. One whose weights are not sharded stays as it is.

    Args:
        model: as training leaves it.
        dtypes: number formats to give some of them back.
        trained: the names of what trained; all that an adapter's folder holds.
    """
    if not sharding():
        return
    main = Ranks.launched().is_main
    full: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            whole_name = f"{path}.{name}".lstrip(".")
            if parameter is None or (hasattr(model, "peft_config") and whole_name not in trained):
                continue
            if id(parameter) not in full:
                with gathered(parameter) as tensor:
                    dtype = dtypes.get(whole_name, tensor.dtype)
                    copy = tensor.detach().to("cpu", dtype, copy=True) if main else None
                full[id(parameter)] = parameter if copy is None else nn.Parameter(copy, parameter.requires_grad)
            module._parameters[name] = full[id(parameter)]
        # FSDP2 gives each module that it shards a class of its own, made of its own and the module's.
        if main and type(module).__name__.startswith("FSDP") and len(type(module).__bases__) == 2:
            module.__class__ = type(module).__bases__[1]

"""Resolves the names of devices and dtypes on this machine."""

from __future__ import annotations

import torch

from striate.errors import ModelError, did_you_mean
from striate.storage.launcher import launch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is CUDA where there is some, else the CPU.

    Raises:
        ModelError: an unknown device, or one that this machine does not have.
    """
    if name == "auto":
        return _own(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _no_device(f"unknown device {name!r}", did_you_mean(name, DEVICES)) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise _no_device(f"device {name!r} asked for, but torch {torch.__version__} finds no CUDA device here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise _no_device(f"device {name!r} asked for, but there are {torch.cuda.device_count()} CUDA devices here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise _no_device(f"device {name!r} asked for, but torch finds no Apple GPU here")
    if device.type not in ("cpu", "cuda", "mps"):
        raise _no_device(f"device {name!r} is not supported")
    return _own(device)


def _own(device: torch.device) -> torch.device:
    """Return the device of this process: of several on one machine each has a CUDA device of its own."""
    here = launch()
    if device.type != "cuda" or device.index is not None or here.world_size == 1:
        return device
    return torch.device("cuda", here.local_rank)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype called `name`; `auto` is float32 on the CPU and bfloat16 elsewhere.

    Raises:
        ModelError: an unknown dtype.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        hint = f"{did_you_mean(name, DTYPES)}auto is a good choice"
        raise ModelError(f"unknown dtype {name!r}", ", ".join(["auto", *DTYPES]), hint)
    return DTYPES[name]


def _no_device(given: str, hint: str = "") -> ModelError:
    return ModelError(given, ", ".join(DEVICES), f"{hint}use device auto or cpu")

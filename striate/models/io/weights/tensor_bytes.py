"""Reads one stored tensor into memory, and gives a tensor's bytes as safetensors stores them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from striate.errors import ModelError
from striate.models.io.sane_model import is_finite
from striate.models.io.weights.finite_bytes import not_finite
from striate.models.io.weights.safetensors_shards import Computed, Stored

FLOATS: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The floating point formats by their codes on disk."""


def read_tensor(stored: Stored) -> Tensor:
    """Return a stored tensor on the CPU, in memory of its own.

    Raises:
        ModelError: its format is no floating point of 16 bits or more, or its bytes are not those of its shape.
    """
    dtype = FLOATS.get(stored.dtype)
    if dtype is None or stored.size != stored.numel * dtype.itemsize:
        raise ModelError(
            f"{stored.file} holds {stored.size} bytes of {stored.dtype} for a tensor of shape {stored.shape}",
            f"whole tensors in {', '.join(FLOATS)}",
            "download or save the model again",
        )
    content = bytearray(stored.size)
    with stored.file.open("rb") as stream:
        stream.seek(stored.begin)
        if stream.readinto(content) != stored.size:
            raise OSError(f"{stored.file} ends early")
    tensor = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return tensor.reshape(stored.shape)


def read_finite(stored: Stored, name: str) -> Tensor:
    """Return the stored tensor called `name` as `read_tensor` does, once its numbers are looked at.

    Raises:
        ModelError: as `read_tensor`; or one is infinite or no number, in what is no mask of zeros and minus infinity.
    """
    tensor = read_tensor(stored)
    if not _fine(tensor):
        raise not_finite(stored.file, name)
    return tensor


def _fine(tensor: Tensor) -> bool:
    return is_finite(tensor) or _is_mask(tensor)


def _is_mask(tensor: Tensor) -> bool:
    """Return whether the tensor is zeros and minus infinity alone: a mask that is kept as a buffer."""
    return bool(((tensor == 0) | (tensor == -torch.inf)).all())


def computed(name: str, code: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Computed:
    """Return the tensor called `name` that `make` makes when it is written, rounded to the format `code`.

    Writing it raises a ModelError where a number is too large for that format.
    """
    dtype = FLOATS[code]

    def content() -> memoryview:
        tensor = make()
        rounded = tensor.to(dtype)
        if not (is_finite(rounded) or _is_mask(tensor)):
            raise ModelError(
                f"{name} holds {tensor.abs().max().item():.3g}, and the most of {str(dtype).removeprefix('torch.')} is"
                f" {torch.finfo(dtype).max:.5g}",
                "weights within the range of their format",
                f"use --dtype {'bfloat16' if code == 'F16' else 'float32'}",
            )
        return rounded.contiguous().reshape(-1).view(torch.uint8).numpy().data

    return Computed(code, shape, math.prod(shape) * dtype.itemsize, content)

"""Writes a GGUF file tensor by tensor: names, shapes and number formats first, then values, never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from striate.errors import ModelError
from striate.models.convert.gguf import ggml_library

F32, F16, BF16, Q8_0, Q5_0, Q4_K, Q6_K = (
    gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q4_K", "Q6_K")
)
FORMATS = {
    "float32": (F32, gguf.LlamaFileType.ALL_F32),
    "float16": (F16, gguf.LlamaFileType.MOSTLY_F16),
    "bfloat16": (BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_k": (Q4_K, gguf.LlamaFileType.MOSTLY_Q4_K_M),
}
_BY_GGML = (Q4_K, Q6_K)
# Rows that no block of the format divides get llama.cpp's next larger one.
_NEXT = {Q4_K: Q5_0, Q6_K: Q8_0, Q5_0: F16, Q8_0: F16}


@dataclass(frozen=True)
class Entry:
    """One tensor of a GGUF file: its name there, its shape, its number format, and what reads its float32 values."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    values: Callable[[], np.ndarray]


def entry(name: str, tensor: torch.Tensor, kind: gguf.GGMLQuantizationType) -> Entry:
    """Return the entry of a tensor: vectors in float32, rows that no block of `kind` divides in a larger format."""
    shape = tuple(tensor.shape)
    if len(shape) < 2:
        kind = F32
    while shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = _NEXT[kind]
    return Entry(name, shape, kind, partial(values_of, tensor))


def values_of(tensor: torch.Tensor) -> np.ndarray:
    """Return the tensor's values in float32, in the order of its dimensions."""
    values: np.ndarray = tensor.detach().float().contiguous().cpu().numpy()
    return values


def write_gguf(
    target: Path, architecture: str, facts: Callable[[gguf.GGUFWriter], Any], entries: Sequence[Entry]
) -> None:
    """Write `target`: what `facts` tells the writer, then the tensors; under a temporary name until it is whole.

    Raises:
        OSError: the file can't be written.
        ModelError: a format of llama.cpp's own, and no llama.cpp is installed; numbers beyond float16.
    """
    if any(tensor.kind in _BY_GGML for tensor in entries):
        ggml_library.check_library()
    partly = target.with_name(f".{target.name}.partial")
    try:
        writer = gguf.GGUFWriter(partly, architecture)
        facts(writer)
        for tensor in entries:
            _announce(writer, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in entries:
            writer.write_tensor_data(_rounded(tensor))
        writer.close()
        partly.rename(target)
    finally:
        partly.unlink(missing_ok=True)


def _rounded(tensor: Entry) -> np.ndarray:
    """Return the values of a tensor in its number format, as they lie in the file."""
    quantize = ggml_library.quantize if tensor.kind in _BY_GGML else gguf.quantize
    with np.errstate(over="ignore"):
        rounded: np.ndarray = quantize(tensor.values(), tensor.kind)
    if tensor.kind == F16 and not np.isfinite(rounded).all():
        raise ModelError(
            f"{tensor.name} holds {np.abs(tensor.values()).max():.3g}, and the most of float16 is 65504",
            "weights within the range of their format",
            "take --type bf16; a vision part, which is always in float16, is left out by --text-only",
        )
    return rounded


def _announce(writer: gguf.GGUFWriter, tensor: Entry) -> None:
    """Write name, shape and place of a tensor whose values follow later; formats unknown to numpy as bytes."""
    in_bytes = gguf.quant_shape_to_byte_shape(tensor.shape, tensor.kind)
    size = int(np.prod(in_bytes))
    if tensor.kind in (F32, F16):
        numbers = np.dtype(np.float32 if tensor.kind == F32 else np.float16)
        writer.add_tensor_info(tensor.name, tensor.shape, numbers, size)
    else:
        writer.add_tensor_info(tensor.name, in_bytes, np.dtype(np.uint8), size, raw_dtype=tensor.kind)


def bytes_of(entries: Sequence[Entry]) -> int:
    """Return how many bytes the values of all entries take in the file."""
    return sum(int(np.prod(gguf.quant_shape_to_byte_shape(tensor.shape, tensor.kind))) for tensor in entries)

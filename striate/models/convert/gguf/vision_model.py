"""Writes an LVLM's vision encoder and projector as the GGUF file that llama.cpp calls `mmproj`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gguf

from striate.errors import ModelError
from striate.models.convert.gguf.gguf_writer import F32, FORMATS, Entry, entry, write_gguf
from striate.models.convert.gguf.layouts import VisionLayout, layout_of
from striate.models.structure.anatomy import unwrap

# llama.cpp adds these to features, which it can't do in half precision.
_ADDED = ("v.position_embd.weight", "v.class_embd", "v.patch_embd.bias")


def write_vision_model(model: Any, processor: Any, target: Path, dtype: str = "float16") -> VisionLayout:
    """Write encoder and projector of `model` to `target`, whole or not at all; return the layout that they have there.

    Matrices are float16, as in llama.cpp's own files, or float32; norms, biases and embeddings of positions float32.

    Raises:
        ModelError: a family, an encoder or a setting that llama.cpp does not compute as transformers does.
        OSError: the file can't be written.
    """
    layout = layout_of(unwrap(model), processor)
    entries = list(vision_entries(layout, dtype))
    write_gguf(
        target,
        gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MMPROJ],
        partial(layout.write_facts, file_type=FORMATS[dtype][1]),
        entries,
    )
    return layout


def vision_entries(layout: VisionLayout, dtype: str = "float16") -> Iterator[Entry]:
    """Yield every tensor of encoder and projector by llama.cpp's name.

    Raises:
        ModelError: a tensor that llama.cpp has no place for.
    """
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layout.depth)
    for name, tensor in layout.tensors():
        known = name if name.startswith(("v.", "mm.")) else names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ModelError(
                f"llama.cpp has no place for {name} of the vision encoder",
                f"a plain {layout.title}",
                "export the language model alone with --text-only",
            )
        yield entry(known, tensor, F32 if known in _ADDED else FORMATS[dtype][0])

"""A folder that llama.cpp and Ollama serve: the language model, the vision part, a Modelfile."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from striate.errors import ModelError
from striate.models.convert.gguf.gguf_writer import bytes_of
from striate.models.convert.gguf.language_model import language_entries, write_language_model
from striate.models.convert.gguf.layouts import VisionLayout, layout_of
from striate.models.convert.gguf.modelfile import modelfile
from striate.models.convert.gguf.picture_template import PictureTemplate, picture_template
from striate.models.convert.gguf.vision_model import vision_entries, write_vision_model
from striate.models.interventions.model_rule import rule_of
from striate.models.structure.anatomy import unwrap
from striate.storage.atomic import check_room, new_folder, write_text

TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "q8_0", "q4_k": "q4_k"}
"""Number format of the language model's matrices, by llama.cpp's name -> by the writer's."""
LANGUAGE, VISION, MODELFILE = "language-{}.gguf", "mmproj-f16.gguf", "Modelfile"


@dataclass(frozen=True)
class GgufExport:
    """What was written.

    Attributes:
        language: file of the language model.
        vision: file of the vision part, None where it was left out.
        sizes: bytes of each file by name.
        notes: what llama.cpp does otherwise than transformers, one line each.
    """

    language: Path
    vision: Path | None
    sizes: dict[str, int]
    notes: list[str] = field(default_factory=list)


def chat_of(model: Any, processor: Any, *, text_only: bool = False) -> PictureTemplate:
    """Return how a conversation with `model` is written; its chat template is rendered for that, several times.

    Raises:
        ModelError: a vision part that llama.cpp does not compute as transformers does.
    """
    layout = None if text_only else layout_of(unwrap(model), processor)
    return picture_template(processor, *((layout.around, layout.own) if layout else ()))


def export_gguf(
    model: Any,
    processor: Any,
    out: Path,
    *,
    kind: str = "f16",
    text_only: bool = False,
    chat: PictureTemplate | None = None,
) -> GgufExport:
    """Return what was written to the folder `out`, whole or not at all: `model` for llama.cpp, and a Modelfile.

    Args:
        model: an LVLM without an adapter.
        processor: its own.
        out: a new or empty folder.
        kind: number format of the language model's matrices, one of `TYPES`; the vision part has float16.
        text_only: leave the vision part out.
        chat: how a conversation is written; None for `chat_of`.

    Raises:
        ModelError: something that llama.cpp does not compute as transformers does, or an unknown format.
        ArtifactError: `out` can't be written, or the disk has too little room.
    """
    _check(model, kind)
    layout = None if text_only else layout_of(unwrap(model), processor)
    check_room(_forecast(model, layout, TYPES[kind]), out)
    template = chat or chat_of(model, processor, text_only=text_only)
    language = LANGUAGE.format(kind)
    with new_folder(out) as folder:
        write_language_model(model, processor, folder / language, TYPES[kind], template.jinja)
        if layout is not None:
            write_vision_model(model, processor, folder / VISION)
        files = [language, *([VISION] if layout else [])]
        write_text(folder / MODELFILE, modelfile(files, template))
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    notes = [] if layout is None else layout.notes()
    if layout is not None and not template.exact:
        notes.append("the chat template is written as it is: llama.cpp's chat may set pictures otherwise than training")
    return GgufExport(out / language, out / VISION if layout else None, sizes, notes)


def _check(model: Any, kind: str) -> None:
    if kind not in TYPES:
        raise ModelError(f"unknown format {kind!r}", ", ".join(TYPES), "f16 is a good choice")
    if getattr(unwrap(model).config, "quantization_config", None) is not None:
        raise ModelError(
            "the model is quantised already",
            "a model in 16 or 32 bits",
            "take the model as it was before that; --type q8_0 and q4_k write 8 and 4 bits",
        )
    if rule_of(model) is not None:
        raise ModelError(
            "this model skips image tokens in some layers, which llama.cpp can't",
            "a model that computes all tokens in every layer",
            "train it without train.image_tokens: region",
        )


def _forecast(model: Any, layout: VisionLayout | None, dtype: str) -> int:
    """Return how many bytes both files take, but for their vocabulary."""
    vision = 0 if layout is None else bytes_of(list(vision_entries(layout)))
    return bytes_of(list(language_entries(model, dtype))) + vision

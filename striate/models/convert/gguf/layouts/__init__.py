"""How llama.cpp lays out encoder and projector: one file a kind, and the table of the families it computes rightly."""

from __future__ import annotations

from typing import Any

from striate.errors import ModelError
from striate.models.convert.gguf.layouts.gemma3_layout import Gemma3Layout
from striate.models.convert.gguf.layouts.idefics3_layout import Idefics3Layout
from striate.models.convert.gguf.layouts.internvl_layout import InternVLLayout
from striate.models.convert.gguf.layouts.llava_layout import LlavaLayout
from striate.models.convert.gguf.layouts.qwen_layouts import Qwen2VLLayout, Qwen3VLLayout, Qwen25VLLayout
from striate.models.convert.gguf.layouts.vision_layout import TEXT_ONLY, VisionLayout

LAYOUTS: dict[str, type[VisionLayout]] = {
    "llava": LlavaLayout,
    "idefics3": Idefics3Layout,
    "smolvlm": Idefics3Layout,
    "gemma3": Gemma3Layout,
    "qwen2_vl": Qwen2VLLayout,
    "qwen2_5_vl": Qwen25VLLayout,
    "qwen3_vl": Qwen3VLLayout,
    "internvl": InternVLLayout,
}
"""Model type -> how its vision part is written."""

_TILES = "llama.cpp joins the tiles of a picture without the line ends that transformers puts between their rows"
REFUSED = {
    "llava_next": _TILES,
    "llava_next_video": _TILES,
    "llava_onevision": _TILES,
    "vipllava": "llama.cpp has no layer norm before a projector that reads several layers",
    "paligemma": "llama.cpp computes no attention in both directions over a prompt",
    "mllama": "llama.cpp has no cross-attention layers",
    "mistral3": "its tokenizer is cut in a way that this does not write",
}
"""Model types that llama.cpp does not compute as transformers does -> why."""


def layout_of(core: Any, processor: Any) -> VisionLayout:
    """Return how llama.cpp holds the vision part of the LVLM `core`.

    Raises:
        ModelError: a family, an encoder or a setting that llama.cpp does not compute as transformers does.
    """
    kind = core.config.model_type
    layout = LAYOUTS.get(kind)
    if layout is None:
        why = REFUSED.get(kind, "llama.cpp has no layout that this knows to be its own")
        raise ModelError(f"the vision part of a {kind!r} is not written as GGUF: {why}", ", ".join(LAYOUTS), TEXT_ONLY)
    return layout(core, processor)


__all__ = ["LAYOUTS", "REFUSED", "VisionLayout", "layout_of"]

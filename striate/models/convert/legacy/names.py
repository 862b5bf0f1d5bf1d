"""Maps the tensor names of an original checkpoint to those of transformers' LLaVA form."""

from __future__ import annotations

TOWER = "vision_tower."
_ORIGINAL_TOWER = "model.vision_tower.vision_tower."
_PROJECTOR = "model.mm_projector."
_LINEARS = {"0": "linear_1", "2": "linear_2"}
_VISION = "vision_model."
# Buffers that the model computes from its config.
_DERIVED = ("rotary_emb.inv_freq", "position_ids")
EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


def llava_name(name: str) -> str | None:
    """Return the name on disk in LLaVA's form, an empty text for a buffer that the model computes, None if unknown."""
    if name.endswith(_DERIVED):
        return ""
    if name.startswith(_ORIGINAL_TOWER):
        return tower_name(name.removeprefix(_ORIGINAL_TOWER))
    if name.startswith(_PROJECTOR):
        number, _, kind = name.removeprefix(_PROJECTOR).partition(".")
        known = number in _LINEARS and kind in ("weight", "bias")
        return f"multi_modal_projector.{_LINEARS[number]}.{kind}" if known else None
    if name == "lm_head.weight" or name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.")):
        return f"language_model.{name}"
    return None


def tower_name(name: str) -> str | None:
    """Return the name of a vision tower's tensor; empty for the text half of a pair such as CLIP, or derived ones."""
    if name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_")) or name.endswith(_DERIVED):
        return ""
    return f"{TOWER}{_VISION}{name.removeprefix(_VISION)}"


def plain_name(name: str) -> str:
    """Return a name of an adapter file, or of non_lora_trainables.bin, without what PEFT and trainers put before it."""
    for prefix in ("module.", "base_model.model."):
        name = name.removeprefix(prefix)
    # Some trainers wrap the model twice.
    return name.removeprefix("model.") if name.startswith(("model.model.", "model.lm_head.")) else name

"""Table of model types: projector and vision encoder names, and what can't be removed or trained, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What Hugging Face's accessors do not tell about one model type.

    Attributes:
        model_type: `config.model_type` of the LVLM.
        title: the family's name for people.
        projectors: dotted module names of the projector, relative to the LVLM's base model.
        no_removal: why no decoder layer of this family can be removed, or empty.
        vision: dotted module names of the vision encoder, where the accessor does not find it.
        refused: why models of this family can't be used at all, or empty.
        routes: parts of parameter names that only some batches take; they may receive no gradient from one batch.
    """

    model_type: str
    title: str
    projectors: tuple[str, ...] = ()
    no_removal: str = ""
    vision: tuple[str, ...] = ()
    refused: str = ""
    routes: tuple[str, ...] = ()


_PROJECTOR = ("multi_modal_projector",)
_MERGER = ("visual.merger",)
_DEEPSTACK = ("visual.merger", "visual.deepstack_merger_list")

# Parts that only choose tokens or experts, through which no gradient passes, and parts that no forward pass reads.
UNTRAINABLE = frozenset({"indexer", "e_score_correction_bias", "image_sep"})

# Facts of a decoder layer that later layers depend on: a layer where one is true can't be removed.
BOUNDARIES = {"is_block_boundary": "it starts a block of layers whose sum later layers read"}

# Facts of a decoder layer that follow from the config's sharing of keys and values, which is checked by itself.
SHARING = frozenset({"store_full_length_kv"})

# Config fields that list vision layers whose features are added to the first decoder layers, one each: those decoder
# layers can't be removed.
INJECTED = ("deepstack_visual_indexes",)

FAMILIES: tuple[Family, ...] = (
    Family("llava", "LLaVA 1.5", _PROJECTOR),
    Family("llava_next", "LLaVA-NeXT", _PROJECTOR),
    Family("llava_onevision", "LLaVA-OneVision", _PROJECTOR),
    Family("vipllava", "ViP-LLaVA", _PROJECTOR),
    Family("qwen2_vl", "Qwen2-VL", _MERGER),
    Family("qwen2_5_vl", "Qwen2.5-VL", _MERGER),
    Family("qwen3_vl", "Qwen3-VL", _DEEPSTACK),
    Family("qwen3_vl_moe", "Qwen3-VL MoE", _DEEPSTACK),
    Family("gemma3", "Gemma 3", _PROJECTOR),
    Family("gemma3n", "Gemma 3n", ("embed_vision",)),
    Family("paligemma", "PaliGemma", _PROJECTOR),
    Family("idefics2", "Idefics2", ("connector",)),
    Family("idefics3", "Idefics3", ("connector",)),
    Family("smolvlm", "SmolVLM", ("connector",)),
    Family("internvl", "InternVL", _PROJECTOR),
    Family("mistral3", "Mistral 3", _PROJECTOR),
    Family("mllama", "Llama 3.2 Vision", _PROJECTOR),
    Family("cohere2_vision", "Command A Vision", _PROJECTOR),
    Family("aya_vision", "Aya Vision", _PROJECTOR),
    Family("deepseek_vl", "DeepSeek-VL", ("aligner",)),
    Family("janus", "Janus", ("aligner",)),
    Family("glm4v", "GLM-4V", _MERGER),
    Family("ernie4_5_vl_moe", "ERNIE 4.5 VL", ("resampler_model",), routes=("vision_moe",)),
    Family("granite_docling", "Granite Docling", ("vision_model.connector",), routes=("connector.fine",)),
    Family("udop", "UDOP", vision=("patch_embed",)),
    Family("evolla", "Evolla", refused="it reads proteins, not pictures"),
    Family("pi0", "pi0", refused="it answers with movements of a robot, not with text"),
    Family("diffusion_gemma", "DiffusionGemma", refused="it writes blocks of text at once by diffusion"),
    Family(
        "shieldgemma2",
        "ShieldGemma 2",
        refused="it is a classifier: transformers writes its weights under names that it can't read back",
    ),
)

# What fails in a family's own code, by model type and release of transformers.
BROKEN = {
    ("llama4", "5.24"): "its forward pass reads `image_outputs`, which the output of its language model lacks",
}

DEFAULT = Family("", "unlisted family")


def family_of(model_type: str) -> Family:
    """Return the row of `model_type`, or `DEFAULT`, for which the rules of `anatomy` hold."""
    return next((family for family in FAMILIES if family.model_type == model_type), DEFAULT)

"""What vLLM takes: architectures, vision encoders under LLaVA, and which PEFT adapters; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from striate.models.io.adapter_folder import changed_base

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's --max-lora-rank."""

ARCHITECTURES = frozenset(
    {
        "AriaForConditionalGeneration",
        "AyaVisionForConditionalGeneration",
        "Blip2ForConditionalGeneration",
        "ChameleonForConditionalGeneration",
        "Cohere2VisionForConditionalGeneration",
        "Gemma3ForConditionalGeneration",
        "Gemma3nForConditionalGeneration",
        "Glm4vForConditionalGeneration",
        "Glm4vMoeForConditionalGeneration",
        "Idefics3ForConditionalGeneration",
        "InternVLForConditionalGeneration",
        "Llama4ForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "LlavaNextForConditionalGeneration",
        "LlavaNextVideoForConditionalGeneration",
        "LlavaOnevisionForConditionalGeneration",
        "Mistral3ForConditionalGeneration",
        "PaliGemmaForConditionalGeneration",
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "SmolVLMForConditionalGeneration",
    }
)
"""Classes of transformers that vLLM has a model of its own for."""

LLAVA_ENCODERS = ("clip_vision_model", "siglip_vision_model", "pixtral")
_LLAVAS = ("llava", "llava_next", "llava_next_video", "llava_onevision")


def model_problem(config: Any) -> str:
    """Return why vLLM can't serve a model of this config; empty where it can."""
    names = getattr(config, "architectures", None) or []
    if not set(names) & ARCHITECTURES:
        return f"vLLM has no model of its own for {', '.join(names) or config.model_type}"
    vision = getattr(getattr(config, "vision_config", None), "model_type", None)
    if config.model_type in _LLAVAS and vision not in LLAVA_ENCODERS:
        return f"vLLM's LLaVA has no vision encoder {vision!r}: " + ", ".join(LLAVA_ENCODERS) + " are known to it"
    return ""


def adapter_problems(config: Mapping[str, Any], outside: Iterable[str]) -> list[str]:
    """Return why vLLM would refuse a PEFT adapter, or misread it; empty where it takes it.

    Args:
        config: of the adapter.
        outside: names of its tensors that don't belong to decoder layers.
    """
    kind = config.get("peft_type")
    problems = []
    if kind != "LORA":
        problems.append(f"it is {kind}, and vLLM knows LoRA alone")
    if config.get("modules_to_save"):
        problems.append("it holds modules that trained whole (modules_to_save), such as the projector")
    if config.get("use_dora"):
        problems.append("it is a DoRA")
    if start := changed_base(config):
        problems.append(f"it began as {start}, which changes the base weights too")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        problems.append("it holds trained biases")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        problems.append("its modules have different ranks or scales, which vLLM does not read")
    if config.get("target_parameters"):
        problems.append("it adapts single tensors of modules (target_parameters)")
    if int(config.get("r") or 0) > RANKS[-1]:
        problems.append(f"its rank {config['r']} is above {RANKS[-1]}")
    if first := next(iter(sorted(outside)), None):
        problems.append(f"it adapts more than decoder layers ({first})")
    return problems


def rank_option(rank: int) -> int:
    """Return the least --max-lora-rank that takes adapters of this rank."""
    return next(size for size in RANKS if size >= rank)

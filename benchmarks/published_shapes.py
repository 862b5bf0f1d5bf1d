"""The shapes of the paper's four LVLMs, in Hugging Face's LLaVA form, and toys of the same families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, Phi3Config, SiglipVisionConfig

IMAGE_ID = 7


def clip_large() -> CLIPVisionConfig:
    """Return CLIP-L/14-336: 576 patches."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


def siglip_so400m() -> SiglipVisionConfig:
    """Return SigLIP-so400m/14-384: 729 patches."""
    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )


def llava(text: Any, vision: Any, select: str = "default") -> LlavaConfig:
    """Return an LVLM of the two with LLaVA's projector: two linear layers with GELU."""
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        vision_feature_layer=-2,
        vision_feature_select_strategy=select,
        projector_hidden_act="gelu",
    )


def vicuna(hidden: int, inner: int, layers: int, heads: int) -> LlamaConfig:
    """Return a Vicuna-1.5 of this size."""
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=32064,
        max_position_embeddings=4096,
    )


def llama3_8b() -> LlamaConfig:
    """Return Llama-3-8B."""
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
    )


def phi3_mini() -> Phi3Config:
    """Return Phi-3-mini-4k."""
    return Phi3Config(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32064,
        max_position_embeddings=4096,
    )


SHAPES: dict[str, Callable[[], LlavaConfig]] = {
    "llava-1.5-7b": lambda: llava(vicuna(4096, 11008, 32, 32), clip_large()),
    "llava-1.5-13b": lambda: llava(vicuna(5120, 13824, 40, 40), clip_large()),
    "bunny-llama-3-8b-v": lambda: llava(llama3_8b(), siglip_so400m(), "full"),
    "bunny-phi3-mini-4b-v": lambda: llava(phi3_mini(), siglip_so400m(), "full"),
}


def tiny(config: LlavaConfig) -> LlavaConfig:
    """Return a toy of the same families: 8 layers, 4 image tokens."""
    vision, text = config.vision_config, config.text_config
    vision.update({"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2})
    vision.update({"image_size": 28, "patch_size": 14})
    text.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4})
    text.update({"num_key_value_heads": 4 if text.num_key_value_heads == 32 else 2, "vocab_size": 1000})
    text.update({"head_dim": 8, "pad_token_id": 0, "max_position_embeddings": 512})
    return config

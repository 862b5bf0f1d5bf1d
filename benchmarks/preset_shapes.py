"""The shapes of the LVLMs that presets are made for, as their authors' configs have them; nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from published_shapes import SHAPES, siglip_so400m
from transformers import (
    Gemma3Config,
    Gemma3TextConfig,
    Idefics3Config,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3VLConfig,
    SiglipVisionConfig,
)


def qwen25_vl_7b() -> Qwen2_5_VLConfig:
    """Return Qwen2.5-VL-7B."""
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def qwen3_vl_8b() -> Qwen3VLConfig:
    """Return Qwen3-VL-8B."""
    text = {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5e6},
    }
    vision = {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def smolvlm() -> Idefics3Config:
    """Return SmolVLM-Instruct: SmolLM2-1.7B, SigLIP, 81 image tokens a tile."""
    text = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=49155,
        max_position_embeddings=16384,
    )
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
    return Idefics3Config(text_config=text, vision_config=vision, scale_factor=3, image_token_id=49153)


def internvl3_8b() -> InternVLConfig:
    """Return InternVL3-8B: Qwen2.5-7B, InternViT-300M, 256 image tokens a tile."""
    text = Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=151674,
        max_position_embeddings=32768,
    )
    vision = InternVLVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=[448, 448],
        patch_size=[14, 14],
        attention_bias=True,
        use_qk_norm=False,
    )
    return InternVLConfig(text_config=text, vision_config=vision, downsample_ratio=0.5, tie_word_embeddings=False)


def gemma3_4b() -> Gemma3Config:
    """Return Gemma 3 4B: 256 image tokens a picture."""
    text = Gemma3TextConfig(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        vocab_size=262208,
        sliding_window=1024,
    )
    vision = SiglipVisionConfig(**{**siglip_so400m().to_dict(), "image_size": 896, "vision_use_head": False})
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=256)


PRESETS: dict[str, Callable[[], Any]] = {
    "llava-1.5-7b": SHAPES["llava-1.5-7b"],
    "llava-1.5-13b": SHAPES["llava-1.5-13b"],
    "bunny-llama-3-8b": SHAPES["bunny-llama-3-8b-v"],
    "qwen2.5-vl-7b": qwen25_vl_7b,
    "qwen3-vl-8b": qwen3_vl_8b,
    "smolvlm-2b": smolvlm,
    "internvl3-8b": internvl3_8b,
    "gemma-3-4b": gemma3_4b,
}

"""What the general rules of the zoo do not guess, by model type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """Adjustments for one model type.

    Attributes:
        start: arguments of the default config, before it is shrunk.
        config: values by dotted field name, after shrinking.
        text: values of the text config.
        pixels: shape of `pixel_values`, where the trials below do not find it.
        pixel_name: the input that takes the picture.
        extra: more inputs, as nested lists.
        image_tokens: image tokens per picture, where `get_image_features` does not tell.
        kinds: whether token types mark the image tokens.
    """

    start: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    pixels: tuple[int, ...] = ()
    pixel_name: str = "pixel_values"
    extra: Mapping[str, Any] = field(default_factory=dict)
    image_tokens: int = 0
    kinds: bool = True


ROPE_IN_PARTS = frozenset(
    {
        "cohere_compass_text",
        "cosmos3_edge_text",
        "ernie4_5_vl_moe_text",
        "glm4v_text",
        "glm4v_moe_text",
        "glm_ocr_text",
        "hunyuan_vl_text",
        "paddleocr_vl_text",
        "qwen2_5_omni_text",
        "qwen2_5_vl_text",
        "qwen2_vl_text",
        "qwen3_5_text",
        "qwen3_5_moe_text",
        "qwen3_omni_moe_text",
        "qwen3_vl_text",
        "qwen3_vl_moe_text",
        "qwen4_exp_text",
    }
)
_GRID_POINTS = {"image_grid_pinpoints": [[32, 32]]}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_PARTS = {**_ROPE, "mrope_section": [4, 2, 2]}
_DECODER = {"decoder_start_token_id": 1, "pad_token_id": 0}
_OMNI = {"vision_start_token_id": 61, "vision_end_token_id": 62, "audio_start_token_id": 65, "audio_end_token_id": 66}
_IMAGE = {"image_token_id": 60}
_SHUFFLED = {"out_hidden_size": 256}
_LLAMA4_VISION = {
    "intermediate_size": 256,
    "vision_output_dim": 64,
    "projector_input_dim": 64,
    "projector_output_dim": 64,
}
_CODES = 16
_EMU3_CODES = {f"<|visual token {code:06d}|>": 70 + code for code in range(_CODES)}
_CHAMELEON_CODES = {f"IMGIMG{'AB'[code // 10]}{'ABCDEFGHIJ'[code % 10]}Z": 70 + code for code in range(_CODES)}

_SLIDING, _FULL = "sliding_attention", "full_attention"
_GEMMA4_TEXT = {
    "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING, _FULL, _SLIDING, _SLIDING, _FULL],
    "per_layer_config": {layer: {"head_dim": 32} for layer in (2, 4, 7)},
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
}

_DEEPSEEK_TEXT = {
    "mlp_layer_types": ["dense", *["sparse"] * 7],
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}

_GEMMA3N_TEXT = {
    "layer_types": _GEMMA4_TEXT["layer_types"],
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "intermediate_size": [96, 80, 96, 80, 96, 80, 96, 80],
    "activation_sparsity_pattern": [0.9, 0.8, 0.7, 0.6, 0.5, 0.0, 0.0, 0.0],
}

ROWS: dict[str, Row] = {
    "apertus1p5": Row(
        config={
            "image_token_id": 60,
            "audio_token_id": 64,
            "image_token_offset": 70,
            "audio_token_offset": 70 + _CODES,
            "vision_config.codebook_size": _CODES,
            "vision_config.embed_dim": 4,
            "vision_config.latent_channels": 4,
            "vision_config.base_channels": 32,
            "vision_config.resolution": 32,
            "vision_config.attn_resolutions": [2],
            "audio_config.codebook_size": 8,
            "audio_config.codebook_dim": 64,
            "audio_config.num_filters": 4,
            "audio_config.decoder_hidden_size": 64,
        },
        image_tokens=4,
    ),
    "aria": Row(config={"projector_patch_to_query_dict": {16: 4}}),
    "blip-2": Row(config={"image_token_index": 60, "num_query_tokens": 4}, image_tokens=4),
    "chameleon": Row(
        config={
            "vocabulary_map": {"<image>": 60, **_CHAMELEON_CODES},
            "vq_config.num_embeddings": _CODES,
            "vq_config.base_channels": 32,
            "vq_config.resolution": 32,
            "vq_config.channel_multiplier": [1, 1, 1, 1],
        },
        pixels=(2, 3, 32, 32),
        image_tokens=16,
    ),
    "cohere_compass": Row(text={"rope_parameters": {"full_attention": _PARTS, "sliding_attention": _PARTS}}),
    "deepseek_ocr2": Row(config={"vision_config.sam_config.downsample_channels": [32, 64]}, text=_DEEPSEEK_TEXT),
    "emu3": Row(
        config={
            "vocabulary_map": {"<image>": 60, "<|extra_200|>": 90, **_EMU3_CODES},
            "vq_config.codebook_size": _CODES,
            "vq_config.embed_dim": 4,
            "vq_config.hidden_size": 32,
            "vq_config.base_channels": 32,
            "vq_config.channel_multiplier": [1, 1, 1, 1],
        },
    ),
    "ernie4_5_vl_moe": Row(text={"rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]}}),
    "florence2": Row(
        config={
            "vision_config.patch_size": (7, 3, 3, 3),
            "vision_config.embed_dim": (16, 16, 32, 32),
            "vision_config.num_heads": (2, 2, 2, 2),
            "vision_config.num_groups": (2, 2, 2, 2),
            "vision_config.depths": (1, 1, 1, 1),
            "vision_config.window_size": 4,
        },
        pixels=(2, 3, 64, 64),
    ),
    "fast_vlm": Row(config={"vision_config.hidden_size": 64}),
    "gemma3n": Row(text=_GEMMA3N_TEXT),
    "gemma4": Row(
        start={"vision_config": {"model_type": "gemma4_vision"}},
        config={"vision_config.pooling_kernel_size": 2},
        text=_GEMMA4_TEXT,
    ),
    "gemma4_unified": Row(
        start={"vision_config": {"model_type": "gemma4_unified_vision"}},
        config={"vision_config.pooling_kernel_size": 1, "vision_config.output_proj_dims": 64},
        text={**_GEMMA4_TEXT, "num_kv_shared_layers": 0},
        pixels=(2, 16, 192),
    ),
    "diffusion_gemma": Row(
        start={"vision_config": {"model_type": "gemma4_vision"}},
        text={"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    ),
    "granite_docling": Row(pixels=(2, 1, 3, 32, 32), extra={"pixel_attention_mask": [[True]] * 2}),
    "granite4_vision": Row(
        start={"downsample_rate": "1/2", "deepstack_layer_map": [(1, 0)], "spatial_target_layers": [2, 3, 5, 7]},
        config=_GRID_POINTS,
        pixels=(2, 2, 3, 32, 32),
        image_tokens=10,
    ),
    "hy_v4_vl": Row(
        text={
            "rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]},
            "indexer_types": ["full", "shared"] * 4,
            "index_n_heads": 2,
            "index_head_dim": 16,
            # Fewer than the tokens, so that a layer which reads another one's choice shows it.
            "index_topk": 4,
        }
    ),
    "hunyuan_vl": Row(text={"head_dim": 16}),
    "idefics": Row(
        config={"use_resampler": False}, pixels=(2, 1, 3, 32, 32), extra={"image_attention_mask": [[[1]] * 8] * 2}
    ),
    "inkling2": Row(pixels=(8, 16, 16, 3), extra={"image_grid_thw": [[1, 2, 2]] * 2}),
    "inkling2_loop": Row(
        text={"loop_layer_index_start": 2, "loop_layer_index_end": 6, "n_layers_per_attn_res_block": 2},
        pixels=(8, 16, 16, 3),
        extra={"image_grid_thw": [[1, 2, 2]] * 2},
    ),
    "inkling_mm_model": Row(pixels=(2, 2, 8, 8, 3)),
    "instructblip": Row(config={"image_token_index": 60, "num_query_tokens": 4}, image_tokens=4),
    "instructblipvideo": Row(config={"video_token_index": 60}),
    "kosmos-2": Row(config={"latent_query_num": 4}, image_tokens=4),
    "kosmos-2.5": Row(
        config={"latent_query_num": 4, "vision_config.patch_embed_hidden_size": 192},
        pixel_name="flattened_patches",
        image_tokens=4,
    ),
    "janus": Row(config={"vq_config.base_channels": 32, "vq_config.channel_multiplier": [1, 1, 1, 1]}),
    "lfm2_vl": Row(extra={"pixel_attention_mask": [[1] * 16] * 2}),
    "llama4": Row(config={f"vision_config.{name}": size for name, size in _LLAMA4_VISION.items()}),
    "llava_next": Row(config=_GRID_POINTS),
    "llava_next_video": Row(config=_GRID_POINTS),
    "llava_onevision": Row(config={**_GRID_POINTS, "vision_feature_select_strategy": "full"}),
    "minicpm_ocr": Row(config=_IMAGE, pixels=(1, 3, 8, 256)),
    "minicpmv4_6": Row(config=_IMAGE, pixels=(1, 3, 8, 256)),
    "minicpmv4_7": Row(config=_IMAGE, pixels=(1, 3, 8, 256)),
    "mllama": Row(
        config={
            "vision_config.max_num_tiles": 1,
            "vision_config.supported_aspect_ratios": [[1, 1]],
            "vision_config.intermediate_layers_indices": [0],
            "vision_config.vision_output_dim": 128,
            "text_config.cross_attention_layers": [2, 5],
        },
        pixels=(2, 1, 1, 3, 32, 32),
        extra={
            "aspect_ratio_ids": [[1]] * 2,
            "aspect_ratio_mask": [[[1]]] * 2,
            "cross_attention_mask": [[[[1]]] * 8] * 2,
        },
    ),
    "molmo2": Row(
        start={"adapter_config": {"vision_feature_layer": [3, 1]}},
        pixels=(2, 16, 192),
        extra={
            "image_token_pooling": [[4 * token + patch for patch in range(4)] for token in range(8)],
            "image_grids": [[2, 2, 0, 0]] * 2,
            "image_num_crops": [1, 1],
        },
    ),
    "nemotron_h_omni": Row(
        config=_IMAGE,
        text={
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"] * 2,
            "n_groups": 2,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
        },
    ),
    "muse_glimmer": Row(config=_SHUFFLED),
    "muse_spark": Row(
        config={**_SHUFFLED, "audio_config.hidden_sizes": (16, 16, 16, 16), "audio_config.depths": (1, 1, 1, 1)}
    ),
    "paligemma": Row(kinds=False),
    "perception_lm": Row(
        config={"vision_config.architecture": "vit", "vision_config.model_args": {"embed_dim": 64}},
        pixels=(2, 1, 3, 32, 32),
    ),
    "pix2struct": Row(config={"vision_config.patch_embed_hidden_size": 192}, pixel_name="flattened_patches"),
    "qwen2_5_omni_thinker": Row(config=_OMNI),
    "qwen3_omni_moe_thinker": Row(config=_OMNI),
    "qwen4_exp": Row(
        text={
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
        }
    ),
    "step3p7": Row(text={"sliding_window": 4}),
    "udop": Row(config=_DECODER),
    "unlimited_ocr": Row(
        config={"vision_config.sam_config.downsample_channels": [32, 64]},
        # With a cache the window slides over new tokens only, so a short one tells cached from uncached answers.
        text={"sliding_window": 64},
    ),
    "vipllava": Row(config={"vision_feature_layers": [-1, -2]}),
    "vision-encoder-decoder": Row(
        start={"encoder": {"model_type": "vit"}, "decoder": {"model_type": "bert"}},
        config={**_DECODER, "decoder.is_decoder": True, "decoder.add_cross_attention": True},
    ),
}

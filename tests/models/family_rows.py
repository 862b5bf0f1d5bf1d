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
    """

    start: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    pixels: tuple[int, ...] = ()
    pixel_name: str = "pixel_values"
    extra: Mapping[str, Any] = field(default_factory=dict)
    image_tokens: int = 0


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

ROWS: dict[str, Row] = {
    "aria": Row(config={"projector_patch_to_query_dict": {16: 4}}),
    "blip-2": Row(config={"image_token_index": 60}),
    "instructblip": Row(config={"image_token_index": 60}),
    "instructblipvideo": Row(config={"video_token_index": 60}),
    "llava_next": Row(config=_GRID_POINTS),
    "llava_next_video": Row(config=_GRID_POINTS),
    "llava_onevision": Row(config={**_GRID_POINTS, "vision_feature_select_strategy": "full"}),
    "vipllava": Row(config={"vision_feature_layers": [-1, -2]}),
    "qwen4_exp": Row(text={"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8, "indexer_compress_ratio": 2}),
}

"""The four published models that the paper tunes, as data: original configs, vision towers, parameter counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import LlavaForConditionalGeneration

from striate.models.convert.legacy.configs import features_of, llava_config, on_meta, tower_config
from striate.models.convert.legacy.layouts import LAYOUTS
from striate.models.convert.legacy.tower import CLIP_NAME, SIGLIP_NAME, TOWERS

_VICUNA = {"model_type": "llava", "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_LLAVA = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": CLIP_NAME,
    "mm_hidden_size": 1024,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "image_aspect_ratio": "pad",
    "torch_dtype": "float16",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_BUNNY = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": SIGLIP_NAME,
    "mm_hidden_size": 1152,
    "image_aspect_ratio": "pad",
    "unfreeze_vision_tower": True,
    "use_s2": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Published:
    """One published model: its original config, and its parameters in all (the vision tower whole, no image token)."""

    name: str
    parameters: int
    language_model: int
    config: Mapping[str, Any] = field(repr=False)

    @property
    def tower(self) -> Mapping[str, Any]:
        """The config of its vision tower."""
        return TOWERS[self.config["mm_vision_tower"]]


PUBLISHED: tuple[Published, ...] = (
    Published(
        "LLaVA-1.5-7B",
        7_062_902_784,
        6_738_415_616,
        {
            **_VICUNA,
            **_LLAVA,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        },
    ),
    Published(
        "LLaVA-1.5-13B",
        13_350_839_296,
        13_015_864_320,
        {
            **_VICUNA,
            **_LLAVA,
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
        },
    ),
    Published(
        "Bunny-Llama-3-8B-V",
        8_479_990_848,
        8_030_261_248,
        {
            **_BUNNY,
            "model_type": "bunny-llama",
            "architectures": ["BunnyLlamaForCausalLM"],
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rope_theta": 500000.0,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
    ),
    Published(
        "Bunny-Phi3-mini-4B-V",
        4_262_287_424,
        3_821_079_552,
        {
            **_BUNNY,
            "model_type": "bunny-phi3",
            "architectures": ["BunnyPhi3ForCausalLM"],
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "bos_token_id": 1,
            "eos_token_id": 32000,
            "pad_token_id": 32000,
        },
    ),
)


def published_model(published: Published) -> LlavaForConditionalGeneration:
    """Return a published model in LLaVA's form, without weights, before an image token is added."""
    layout = next(row for row in LAYOUTS if row.model_type == published.config["model_type"])
    tower = tower_config(published.tower)
    features = features_of(published.config, tower, trimmed=False)
    return on_meta(llava_config(published.config, layout, tower, features))

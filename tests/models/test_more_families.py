"""Families beside the main ones: found, trained in part, made smaller, saved and reloaded to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from striate.artifacts import Region
from striate.models.io.save import save_model
from striate.models.structure.anatomy import find_anatomy
from striate.models.surgery.remove_layers import remove_layers
from striate.models.surgery.roundtrip_check import self_test
from striate.models.trainable.apply import apply_region, lora_config
from striate.models.trainable.gradient_proof import prove_trainable

IMAGE_TOKEN = 60
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4}
CLIP = {**VISION, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, "vision_use_head": False}
SIZES = torch.tensor([[28, 28], [28, 28]])
Batch = dict[str, Any]
Built = tuple[Any, Batch]


def _inputs(image_tokens: int, *shape: int, **more: Any) -> Batch:
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * image_tokens, *tail] for tail in ([7, 8, 9, 10], [11, 12, 13, 14])])
    pictures = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures, **more}


def _text(model_type: str, **more: Any) -> Batch:
    return {**TEXT, "model_type": model_type, **more}


def _vipllava() -> Built:
    config = transformers.VipLlavaConfig(
        vision_config=CLIP, text_config=_text("llama"), image_token_index=IMAGE_TOKEN, vision_feature_layers=[-1, -2]
    )
    return transformers.VipLlavaForConditionalGeneration(config), _inputs(4, 2, 3, 28, 28)


def _llava_onevision() -> Built:
    config = transformers.LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config=_text("qwen2"),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=[[28, 28]],
        vision_feature_select_strategy="full",
    )
    model = transformers.LlavaOnevisionForConditionalGeneration(config)
    return model, _inputs(10, 2, 2, 3, 28, 28, image_sizes=SIZES)


def _mistral3() -> Built:
    vision = {**VISION, "model_type": "pixtral", "image_size": 28, "patch_size": 7, "head_dim": 8}
    config = transformers.Mistral3Config(
        vision_config=vision,
        text_config=_text("mistral", head_dim=8),
        image_token_index=IMAGE_TOKEN,
        spatial_merge_size=2,
    )
    return transformers.Mistral3ForConditionalGeneration(config), _inputs(4, 2, 3, 28, 28, image_sizes=SIZES)


def _cohere2_vision() -> Built:
    config = transformers.Cohere2VisionConfig(
        vision_config={**SIGLIP, "patch_size": 7},
        text_config=_text("cohere2"),
        image_token_id=IMAGE_TOKEN,
        alignment_intermediate_size=64,
    )
    return transformers.Cohere2VisionForConditionalGeneration(config), _inputs(4, 2, 3, 28, 28)


def _aya_vision() -> Built:
    config = transformers.AyaVisionConfig(
        vision_config={**SIGLIP, "patch_size": 7},
        text_config=_text("cohere2"),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    return transformers.AyaVisionForConditionalGeneration(config), _inputs(4, 2, 3, 28, 28)


def _deepseek_vl() -> Built:
    config = transformers.DeepseekVLConfig(vision_config=SIGLIP, text_config=_text("llama"), image_token_id=IMAGE_TOKEN)
    return transformers.DeepseekVLForConditionalGeneration(config), _inputs(4, 2, 3, 28, 28)


def _idefics2() -> Built:
    resampler = {"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16}
    config = transformers.Idefics2Config(
        vision_config={**VISION, "image_size": 28, "patch_size": 7},
        text_config=_text("mistral"),
        perceiver_config={**resampler, "num_key_value_heads": 1, "hidden_size": 32},
        image_token_id=IMAGE_TOKEN,
    )
    return transformers.Idefics2ForConditionalGeneration(config), _inputs(4, 2, 1, 3, 28, 28)


def _glm4v() -> Built:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
    config = transformers.Glm4vConfig(
        vision_config={**vision, "patch_size": 4, "image_size": 16},
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=IMAGE_TOKEN,
        video_token_id=63,
        image_start_token_id=61,
        image_end_token_id=62,
        video_start_token_id=58,
        video_end_token_id=59,
    )
    inputs = _inputs(4, 32, 96, image_grid_thw=torch.tensor([[1, 4, 4], [1, 4, 4]]))
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).long()
    return transformers.Glm4vForConditionalGeneration(config), inputs


BUILDERS = [
    _vipllava,
    _llava_onevision,
    _mistral3,
    _cohere2_vision,
    _aya_vision,
    _deepseek_vl,
    _idefics2,
    _glm4v,
]


@pytest.fixture(params=BUILDERS, ids=lambda build: build.__name__.removeprefix("_"))
def built(request: pytest.FixtureRequest) -> Built:
    build: Callable[[], Built] = request.param
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = build()
    return model.eval(), inputs


def test_it_is_found_made_smaller_and_reloaded_to_the_bit(built: Built, tmp_path: Path) -> None:
    model, inputs = built
    anatomy = find_anatomy(model)
    assert (anatomy.num_layers, anatomy.image_token_ids) == (6, (IMAGE_TOKEN,))
    assert remove_layers(model, [1, 4]) == {0: 0, 2: 1, 3: 2, 5: 3}
    save_model(model, None, tmp_path / "small")
    result = self_test(model, tmp_path / "small", inputs)
    assert (result.max_logit_difference, result.cached_equals_uncached) == (0.0, True)


def test_the_region_and_the_projector_train_in_full_and_with_lora(built: Built) -> None:
    model, inputs = built
    region = Region(layers=(1, 4), num_layers=6, spec="ids:1,4")
    batch = {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN, -100)}
    apply_region(model, region)
    assert "tensors in 2 of 6 decoder layers and" in prove_trainable(model, region, batch)
    wrapped = peft.get_peft_model(model, lora_config(model, region, r=2))
    apply_region(wrapped, region, "lora")
    linears = sum(".lora_A." in name for name, _ in wrapped.named_parameters())
    assert linears >= 2 * 6
    assert prove_trainable(wrapped, region, batch).startswith(f"{2 * linears} tensors in 2 of 6 decoder layers and")

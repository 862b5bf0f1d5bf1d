"""Tiny random LVLMs of many families, built from configs, with inputs made by hand: one picture in each of two rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from original_kit import CLIP as CLIP_TOWER
from original_kit import SIGLIP as SIGLIP_TOWER
from original_kit import write_tower

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

NUM_LAYERS = 6
IMAGE_TOKEN = 60
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
CLIP = {**VISION, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, "projection_dim": 16}
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14}
QWEN_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
Batch = dict[str, Any]
Built = tuple[Any, Batch]


def _rows(image_tokens: int, before: tuple[int, ...] = (), after: tuple[int, ...] = ()) -> dict[str, Any]:
    image = [*before, *[IMAGE_TOKEN] * image_tokens, *after]
    ids = torch.tensor([[1, *image, 7, 8, 9, 10], [1, *image, 11, 12, 13, 14]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _pictures(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _llava() -> Built:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(vision_config=CLIP, text_config={**TEXT, "model_type": "llama"}, image_token_index=IMAGE_TOKEN)
    return LlavaForConditionalGeneration(config), {**_rows(4), "pixel_values": _pictures(2, 3, 28, 28)}


def _llava_next() -> Built:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        vision_config=CLIP,
        text_config={**TEXT, "model_type": "llama"},
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=[[28, 28]],
    )
    inputs = _rows(10)  # 4 of the whole picture, 4 of its one tile, and a newline after each of 2 rows
    inputs |= {"pixel_values": _pictures(2, 2, 3, 28, 28), "image_sizes": torch.tensor([[28, 28], [28, 28]])}
    return LlavaNextForConditionalGeneration(config), inputs


def _qwen_inputs(width: int) -> dict[str, Any]:
    inputs = _rows(4, before=(61,), after=(62,))
    kinds = (inputs["input_ids"] == IMAGE_TOKEN).long()
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    return {**inputs, "mm_token_type_ids": kinds, "pixel_values": _pictures(32, width), "image_grid_thw": grid}


def _qwen_tokens() -> dict[str, int]:
    return {"image_token_id": IMAGE_TOKEN, "video_token_id": 63, "vision_start_token_id": 61, "vision_end_token_id": 62}


def _qwen2_vl() -> Built:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 4, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    text = {**TEXT, "rope_parameters": QWEN_ROPE}
    config = Qwen2VLConfig(vision_config=vision, text_config=text, **_qwen_tokens())
    return Qwen2VLForConditionalGeneration(config), _qwen_inputs(3 * 2 * 4 * 4)


def _qwen2_5_vl() -> Built:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {
        "depth": 4,
        "hidden_size": 16,
        "out_hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1, 3],
    }
    # The second half of the layers looks through a window of 4 tokens.
    sliding = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config={**TEXT, **sliding, "rope_parameters": QWEN_ROPE}, **_qwen_tokens()
    )
    return Qwen2_5_VLForConditionalGeneration(config), _qwen_inputs(3 * 2 * 4 * 4)


def _qwen3_vl() -> Built:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {
        "depth": 4,
        "hidden_size": 16,
        "out_hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [1, 2],
    }
    text = {**TEXT, "head_dim": 8, "rope_parameters": QWEN_ROPE}
    config = Qwen3VLConfig(vision_config=vision, text_config=text, **_qwen_tokens())
    return Qwen3VLForConditionalGeneration(config), _qwen_inputs(3 * 2 * 4 * 4)


def _gemma3() -> Built:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    pattern = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    text = {**TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4, "layer_types": pattern}
    config = Gemma3Config(
        vision_config=SIGLIP,
        text_config=text,
        mm_tokens_per_image=4,
        image_token_id=IMAGE_TOKEN,
        boi_token_index=61,
        eoi_token_index=62,
    )
    inputs = _rows(4, before=(61,), after=(62,))
    inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).long()
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        # It starts as zeros, and a projector of zeros would hide mistakes.
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.2)
    return model, {**inputs, "pixel_values": _pictures(2, 3, 28, 28)}


def _idefics3() -> Built:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    config = Idefics3Config(
        vision_config={**VISION, "image_size": 28, "patch_size": 7},
        text_config={**TEXT, "model_type": "llama"},
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
        pad_token_id=0,
    )
    return Idefics3ForConditionalGeneration(config), {**_rows(4), "pixel_values": _pictures(2, 1, 3, 28, 28)}


def _smolvlm() -> Built:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        vision_config={**VISION, "image_size": 28, "patch_size": 7},
        text_config={**TEXT, "model_type": "llama"},
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return SmolVLMForConditionalGeneration(config), {**_rows(4), "pixel_values": _pictures(2, 1, 3, 28, 28)}


def _paligemma() -> Built:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    config = PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": 32},
        text_config={**TEXT, "model_type": "gemma", "head_dim": 8},
        image_token_index=IMAGE_TOKEN,
        projection_dim=32,
        hidden_size=32,
    )
    inputs = _rows(4)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return PaliGemmaForConditionalGeneration(config), {**inputs, "pixel_values": _pictures(2, 3, 28, 28)}


def _internvl() -> Built:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = InternVLConfig(
        vision_config={**VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        text_config={**TEXT, "model_type": "qwen2"},
        image_token_id=IMAGE_TOKEN,
    )
    return InternVLForConditionalGeneration(config), {**_rows(4), "pixel_values": _pictures(2, 3, 28, 28)}


def _mllama() -> Built:
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_output_dim": 32,
        "intermediate_layers_indices": [0],
        "max_num_tiles": 1,
        "supported_aspect_ratios": [[1, 1]],
    }
    text = {**TEXT, "cross_attention_layers": [1, 4], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    model = MllamaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "cross_attn" in name and "gate" in name:
                parameter.fill_(0.5)  # gates start closed, and a closed layer would hide mistakes
    inputs = _rows(1)
    length = inputs["input_ids"].shape[1]
    inputs |= {
        "pixel_values": _pictures(2, 1, 1, 3, 28, 28),
        "aspect_ratio_ids": torch.ones(2, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(2, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(2, length, 1, 1, dtype=torch.long),
    }
    return model, inputs


BUILDERS: dict[str, Callable[[], Built]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "paligemma": _paligemma,
    "internvl": _internvl,
    "mllama": _mllama,
}


def build_family(name: str) -> Built:
    """Return a random model of the family in eval mode, and its inputs for two rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = BUILDERS[name]()
    return model.eval(), inputs


@pytest.fixture(params=sorted(BUILDERS))
def family(request: pytest.FixtureRequest) -> Built:
    """Each family in turn: a random model and inputs."""
    return build_family(request.param)


@pytest.fixture
def family_builder() -> Callable[[str], Built]:
    """The builder by family name, for tests of one family."""
    return build_family


@pytest.fixture
def question(tiny_llava: Loaded) -> Batch:
    """One question about one picture, as the tiny LLaVA's inputs."""
    ids = tiny_llava.processor.tokenizer("<image>" * 4 + "What colour?", return_tensors="pt")["input_ids"]
    pictures = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A small CLIP as published: both halves in one folder."""
    return write_tower(tmp_path / "towers" / "clip", CLIP_TOWER)


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    """A small SigLIP as published: both halves in one folder."""
    return write_tower(tmp_path / "towers" / "siglip", SIGLIP_TOWER)

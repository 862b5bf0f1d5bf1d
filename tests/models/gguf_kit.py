"""Small random LVLMs of the families that llama.cpp computes, and how each is asked about a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

WORDS = "What colour is the square? The square is red, green or blue; there are 12 of them, and 3 circles."
MARKS = (
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<img>",
    "</img>",
)
MARKS += ("<start_of_image>", "<end_of_image>", *(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2)))
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "initializer_range": 0.3,
}
MRoPE = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0}


@dataclass(frozen=True)
class Family:
    """One small LVLM.

    Attributes:
        model: in eval mode, float32.
        processor: its image processor and tokenizer.
        inputs: makes what the model takes for a picture.
        around: text that stands for a picture of so many image tokens; llama.cpp writes it itself.
    """

    model: Any
    processor: Any
    inputs: Callable[[Image.Image], dict[str, Any]]
    around: Callable[[int], str]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with the marks that llama.cpp looks for."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", *MARKS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([WORDS, *["\n\n"] * 9], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", additional_special_tokens=list(MARKS)
    )


def pictures(count: int, size: tuple[int, int] = (56, 56)) -> list[Image.Image]:
    """Return so many pictures of coloured blocks and noise."""
    random = np.random.default_rng(7)
    blocks = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    found = [Image.fromarray(block).resize(size, Image.Resampling.NEAREST) for block in blocks]
    noise = random.integers(0, 40, (count, size[1], size[0], 3), dtype=np.uint8)
    return [Image.fromarray(np.asarray(one) // 2 + extra) for one, extra in zip(found, noise, strict=True)]


def build(name: str) -> Family:
    """Return the family's small LVLM, random by a fixed seed."""
    torch.manual_seed(3)
    words = tokenizer()
    ids = {mark: words.convert_tokens_to_ids(mark) for mark in MARKS}
    return _BUILDERS[name](words, {**TEXT, "vocab_size": len(words)}, ids)


def _finished(model: Any, words: Any, images: Any, around: Callable[[int], str], **given: Any) -> Family:
    with torch.no_grad():
        for parameter in model.parameters():
            # What starts as zeros or ones would hide mistakes.
            if parameter.dim() < 2 or not bool(parameter.any()):
                parameter.add_(torch.randn_like(parameter) * 0.1)

    def inputs(picture: Image.Image) -> dict[str, Any]:
        made = images(picture, return_tensors="pt")
        return {key: made[key] for key in ("pixel_values", "image_grid_thw") if key in made} | given

    processor = SimpleNamespace(image_processor=images, tokenizer=words, chat_template=None)
    return Family(model.eval(), processor, inputs, around)


def _llava(kind: str, layer: int, words: Any, text: dict[str, Any], ids: dict[str, int]) -> Family:
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    config = LlavaConfig(
        vision_config={**VISION, "model_type": kind},
        text_config={**text, "model_type": "llama"},
        image_token_index=ids["<image>"],
        vision_feature_layer=layer,
        vision_feature_select_strategy="default" if "clip" in kind else "full",
    )
    square = {"height": 56, "width": 56}
    images = LlavaImageProcessorPil(do_pad=True, size=square, crop_size=square, do_center_crop=False)
    return _finished(LlavaForConditionalGeneration(config), words, images, lambda count: "<image>" * count)


def _idefics3(kind: str, words: Any, text: dict[str, Any], ids: dict[str, int]) -> Family:
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    config = AutoConfig.for_model(
        kind,
        vision_config=VISION,
        text_config={**text, "model_type": "llama"},
        image_token_id=ids["<image>"],
        scale_factor=2,
        pad_token_id=1,
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})

    def around(count: int) -> str:
        tile = "<image>" * (count // 5)
        rows = (f"<fake_token_around_image><row_{row}_col_{col}>{tile}" for row in (1, 2) for col in (1, 2))
        first, second, third, fourth = rows
        grid = f"{first}{second}\n{third}{fourth}\n"
        return f"{grid}\n<fake_token_around_image><global-img>{tile}<fake_token_around_image>"

    return _finished(AutoModelForImageTextToText.from_config(config), words, images, around)


def _gemma3(words: Any, text: dict[str, Any], ids: dict[str, int]) -> Family:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    pattern = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    sizes = {"head_dim": 32, "query_pre_attn_scalar": 20, "sliding_window": 6, "layer_types": pattern}
    config = Gemma3Config(
        vision_config={**VISION, "model_type": "siglip_vision_model"},
        text_config={**text, **sizes},
        mm_tokens_per_image=4,
        image_token_id=ids["<image>"],
        image_token_index=ids["<image>"],
        tie_word_embeddings=False,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
    )
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    return _finished(
        Gemma3ForConditionalGeneration(config),
        words,
        images,
        lambda count: f"<start_of_image>{'<image>' * count}<end_of_image>",
    )


def _internvl(words: Any, text: dict[str, Any], ids: dict[str, int]) -> Family:
    from transformers import InternVLConfig, InternVLForConditionalGeneration
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    config = InternVLConfig(
        vision_config={**VISION, "layer_scale_init_value": 0.5, "attention_bias": True},
        text_config={**text, "model_type": "qwen2"},
        image_token_id=ids["<image>"],
    )
    images = GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    return _finished(
        InternVLForConditionalGeneration(config), words, images, lambda count: f"<img>{'<image>' * count}</img>"
    )


def _qwen(kind: str, words: Any, text: dict[str, Any], ids: dict[str, int]) -> Family:
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision: dict[str, Any] = {"depth": 4, "num_heads": 4, "patch_size": 14, "initializer_range": 0.3}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 96}
    if kind == "qwen2_5_vl":
        vision |= {"window_size": 112, "fullatt_block_indexes": [1, 3]}
    if kind == "qwen3_vl":
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}
    tokens = {"image_token_id": ids["<image>"], "video_token_id": 399, "vision_start_token_id": ids["<|vision_start|>"]}
    config = AutoConfig.for_model(
        kind,
        vision_config=vision,
        text_config={**text, "rope_parameters": MRoPE, "head_dim": 16},
        vision_end_token_id=ids["<|vision_end|>"],
        **tokens,
    )
    images = Qwen2VLImageProcessorPil(patch_size=14, min_pixels=28 * 28 * 8, max_pixels=28 * 28 * 4096)
    return _finished(
        AutoModelForImageTextToText.from_config(config),
        words,
        images,
        lambda count: f"<|vision_start|>{'<image>' * count}<|vision_end|>",
    )


_BUILDERS: dict[str, Callable[..., Family]] = {
    "llava-siglip": lambda *given: _llava("siglip_vision_model", -2, *given),
    "llava-siglip-last": lambda *given: _llava("siglip_vision_model", -1, *given),
    "llava-clip": lambda *given: _llava("clip_vision_model", -2, *given),
    "idefics3": lambda *given: _idefics3("idefics3", *given),
    "smolvlm": lambda *given: _idefics3("smolvlm", *given),
    "gemma3": _gemma3,
    "internvl": _internvl,
    "qwen2_vl": lambda *given: _qwen("qwen2_vl", *given),
    "qwen2_5_vl": lambda *given: _qwen("qwen2_5_vl", *given),
    "qwen3_vl": lambda *given: _qwen("qwen3_vl", *given),
}
NAMES = tuple(_BUILDERS)

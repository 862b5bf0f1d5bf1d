"""Vision encoders and language models made small, each saved as a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from striate.demo.register import register_with_transformers
from striate.demo.vision import EfficientNetLiteConfig, EfficientNetLiteModel

ROWS = 320
LLM: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
ENCODERS = ("clip", "clip-alone", "siglip", "dinov2", "vit", "efficientnet_lite")
LLMS = ("llama", "qwen2-tied", "phi3", "qwen3-bf16")
TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def write_tokenizer(folder: Path, *, template: str | None = None, size: int = 300) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, and what colour is the square in the picture"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(folder)


def write_llm(folder: Path, name: str, **change: Any) -> Path:
    kind = name.partition("-")[0]
    settings = {**LLM, **({"head_dim": 8} if kind == "qwen3" else {}), "tie_word_embeddings": "tied" in name, **change}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    if "bf16" in name:
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    write_tokenizer(folder, template=TEMPLATE if "qwen" in name else None)
    return folder


def write_encoder(folder: Path, name: str) -> Path:
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionConfig,
        CLIPVisionModel,
        Dinov2Config,
        Dinov2Model,
        SiglipVisionConfig,
        SiglipVisionModel,
        ViTConfig,
        ViTModel,
    )

    register_with_transformers()
    torch.manual_seed(2)
    model: Any
    if name == "clip":
        text = {**SIZES, "vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 1}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=16))
    elif name == "clip-alone":
        model = CLIPVisionModel(CLIPVisionConfig(**SIZES))
    elif name == "siglip":
        model = SiglipVisionModel(SiglipVisionConfig(**SIZES))
    elif name == "dinov2":
        model = Dinov2Model(Dinov2Config(**SIZES))
    elif name == "vit":
        model = ViTModel(ViTConfig(**SIZES))
    else:
        stages = [[3, 2, 2, 4, 1], [3, 2, 2, 6, 1], [3, 2, 2, 8, 1], [3, 2, 2, 8, 1], [3, 1, 2, 8, 1]]
        model = EfficientNetLiteModel(EfficientNetLiteConfig(image_size=64, stem_channels=4, stages=stages))
    model.save_pretrained(folder)
    return folder

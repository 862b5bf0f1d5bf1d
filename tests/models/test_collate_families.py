"""Labels on real processors of other families: each expands a placeholder in its own way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from striate.data.collate import Collator
from striate.data.label_mask import IGNORED
from striate.data.reading import read_samples
from striate.data.samples import Message, Sample

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for c in m['content'] %}{{ '<start_of_image>' if c['type'] == 'image' else c['text'] | trim }}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}: {% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def qwen2_vl(tokenizer: Any, chatml: str) -> tuple[Any, str]:
    from transformers import Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [*names, "<|im_start|>"]})
    template = chatml.replace("'<image>'", "'<|vision_start|><|image_pad|><|vision_end|>'")
    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112})
    return Qwen2VLProcessor(pictures, tokenizer, None, chat_template=template), "<|im_end|>"


def gemma3(tokenizer: Any, _: str) -> tuple[Any, str]:
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokens = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokens.values(), "<start_of_turn>", "<end_of_turn>"]})
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    pictures = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    return Gemma3Processor(pictures, tokenizer, chat_template=GEMMA_TEMPLATE, image_seq_length=5), "<end_of_turn>"


def idefics3(tokenizer: Any, _: str) -> tuple[Any, str]:
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    rows = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer.add_special_tokens({"additional_special_tokens": [*rows, "<global-img>", "<|im_start|>"]})
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE)
    return processor, "<end_of_utterance>"


@pytest.mark.parametrize("build", [qwen2_vl, gemma3, idefics3])
def test_labels(
    build: Callable[..., tuple[Any, str]], tiny_llava: Loaded, pack_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without torchvision there is no video processor, which Qwen's processor asks for by type.
    monkeypatch.setattr("transformers.ProcessorMixin.check_argument_for_proper_class", lambda *_: None)
    processor, end = build(tiny_llava.processor.tokenizer, tiny_llava.processor.chat_template)
    samples = read_samples(pack_dir)
    later = (
        Message("user", "<image>\nFirst?"),
        Message("assistant", "red"),
        Message("user", "And <image>?"),
        Message("assistant", "green"),
    )
    two = Sample("two", later, samples[0].images + samples[1].images)
    collator = Collator(processor, 256, train=True)
    batch = collator([samples[0], samples[1], two, samples[-1]])
    decode = processor.tokenizer.decode
    found = [decode(row[row != IGNORED]).replace(f" {end}", end) for row in batch["labels"]]
    space = " " if build is idefics3 else ""
    assert found == [
        f"{space}red{end}",
        f"{space}green{end}{space}1{end}",
        f"{space}red{end}{space}green{end}",
        f"{space}yes{end}",
    ]
    tokens = collator.image_mask(batch).sum(dim=1).tolist()
    assert tokens[0] > 1
    assert tokens[2] == 2 * tokens[0]
    assert tokens[3] == 0
    for name, tensor in batch.items():
        if not name.startswith(("pixel", "image")):
            assert tensor.shape == batch["input_ids"].shape, name
    asked = collator.encode_prompts([two, samples[-1]])
    assert asked["attention_mask"][1, 0] == 0
    assert torch.equal(asked["input_ids"][0], batch["input_ids"][2, : asked["input_ids"].shape[1]])

"""Tiny random LVLM, its real processor, and a small data pack: built offline in well under a second each."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

    from striate.models.io.load import Loaded

# Set before huggingface_hub is imported: a missing file then fails at once instead of waiting for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Set where the console is made, it would hold for every test of the process, whatever width that asks for.
os.environ.pop("COLUMNS", None)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core of its own.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# A test says what is right, not how fast this machine is while others use it.
settings.register_profile("striate", deadline=None)
settings.load_profile("striate")

# What tests write need not survive a power cut, and each wait for the disk takes milliseconds.
os.fsync = lambda opened: None


# How many modules the process had when what it holds was last frozen.
_modules = 0


def pytest_collection_finish() -> None:
    """Put all that was imported out of the garbage collector's sight: every full collection would go through it."""
    _freeze()


def pytest_runtest_logfinish() -> None:
    """Do the same for what a test was the first to import, which is half of what a flow's stages collect."""
    if len(sys.modules) > _modules + 100:
        _freeze()


def _freeze() -> None:
    global _modules
    gc.collect()
    gc.freeze()
    _modules = len(sys.modules)


def pytest_unconfigure() -> None:
    """Let the interpreter free what was frozen, as it ends."""
    gc.unfreeze()


SPECIAL_TOKENS = ["<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 60, 220), "black": (10, 10, 10)}
IMAGE_SIZE = 28
PATCH_SIZE = 14
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = [
    "What colour is the square? The square is red, green, blue or black.",
    "How many squares are there? There are 1, 2, 3 or 4 squares.",
    "<|im_start|>user\nWhere is the square?<|im_end|>\n<|im_start|>assistant\n[0.25, 0.25, 0.75, 0.75]<|im_end|>\n",
    "Answer yes or no: is the sky blue on a clear day?",
    "The quick brown fox jumps over the lazy dog and reads the word STRIPE.",
]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on a few lines; any text goes through it and back unchanged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        bos_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_processor() -> LlavaProcessor:
    """Return a real LlavaProcessor: CLIP pictures of 28 px through Pillow, 4 image tokens each, a ChatML template."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def build_llava(
    tokenizer: PreTrainedTokenizerFast, *, num_layers: int = 4, seed: int = 0, tie_embeddings: bool = False
) -> LlavaForConditionalGeneration:
    """Return a random LLaVA in eval mode: CLIP of 2 layers, Llama of `num_layers` layers with hidden size 32."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=16,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tie_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # Wider than the default 0.02: greedy answers of a random model then differ between prompts.
        initializer_range=0.2,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=tie_embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.eval()


def build_loaded(*, num_layers: int = 4, seed: int = 0, tie_embeddings: bool = False) -> Loaded:
    """Return the tiny LLaVA and its processor as `load_model` would."""
    from striate.models.io.load import Loaded

    processor = build_processor()
    model = build_llava(processor.tokenizer, num_layers=num_layers, seed=seed, tie_embeddings=tie_embeddings)
    return Loaded(model, processor)


def build_picture(colour: str = "red", index: int = 0) -> Image:
    """Return a white picture of 40 x 32 px with one square in `colour`, at a place that depends on `index`."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (40, 32), "white")
    left, top = 2 + (index * 5) % 20, 2 + (index * 3) % 12
    ImageDraw.Draw(picture).rectangle((left, top, left + 15, top + 15), fill=COLOURS[colour])
    return picture


def build_inputs(processor: LlavaProcessor, questions: list[str] | None = None) -> dict[str, Any]:
    """Return left-padded inputs of the tiny LLaVA, one picture a question, ready for `model.generate`."""
    questions = questions or ["What colour is the square?", "Where is it? Say it in words."]
    chats = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in questions]
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    pictures = [build_picture(list(COLOURS)[index % 4], index) for index in range(len(texts))]
    processor.tokenizer.padding_side = "left"
    return dict(processor(images=pictures, text=texts, padding=True, return_tensors="pt"))


def build_pack(folder: Path, pictures: int = 12) -> Path:
    """Write a data pack to `folder`: coloured squares, multi-turn and text-only training samples, test rows."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    train: list[dict[str, Any]] = []
    test: list[dict[str, Any]] = []
    names = list(COLOURS)
    for index in range(pictures):
        colour = names[index % len(names)]
        image = f"images/square_{index:02d}.png"
        build_picture(colour, index).save(folder / image)
        train.append(_training_row(index, image, colour))
        test.extend(_test_rows(index, image, colour))
    train.append(
        {
            "id": "text-0",
            "conversations": [{"from": "human", "value": "Is ice cold?"}, {"from": "gpt", "value": "yes"}],
            "task": "text",
        }
    )
    (folder / "train.json").write_text(json.dumps(train), encoding="utf-8")
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test), encoding="utf-8")
    return folder


def _training_row(index: int, image: str, colour: str) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": "<image>\nWhat colour is the square?"},
        {"from": "gpt", "value": colour},
    ]
    if index % 2:
        turns += [{"from": "human", "value": "How many squares are there?"}, {"from": "gpt", "value": "1"}]
    return {"id": f"train-{index:02d}", "image": image, "conversations": turns, "task": "colour"}


def _test_rows(index: int, image: str, colour: str) -> list[dict[str, Any]]:
    left, top = 2 + (index * 5) % 20, 2 + (index * 3) % 12
    box = [round(left / 40, 3), round(top / 32, 3), round((left + 16) / 40, 3), round((top + 16) / 32, 3)]
    base = {"image": image}
    return [
        {
            "id": f"exact-{index:02d}",
            **base,
            "question": "What colour is the square?",
            "answers": [colour],
            "metric": "exact",
            "task": "colour",
        },
        {
            "id": f"choice-{index:02d}",
            **base,
            "question": f"Is the square {colour}? Answer yes or no.",
            "answers": ["yes"],
            "choices": ["yes", "no"],
            "metric": "choice",
            "task": "statement",
        },
        {
            "id": f"anls-{index:02d}",
            **base,
            "question": "Name the shape and its colour.",
            "answers": [f"{colour} square"],
            "metric": "anls",
            "task": "name",
        },
        {
            "id": f"iou50-{index:02d}",
            **base,
            "question": "Where is the square?",
            "answers": [json.dumps(box)],
            "metric": "iou50",
            "task": "grounding",
        },
    ]


@pytest.fixture
def tiny_llava() -> Loaded:
    """A fresh tiny random LLaVA and its processor."""
    return build_loaded()


@pytest.fixture(scope="session")
def llava_builder() -> Callable[..., Loaded]:
    """The builder of tiny LLaVAs, for tests that want another depth, seed or tied embeddings."""
    return build_loaded


@pytest.fixture(scope="session")
def _saved_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny LLaVA saved once."""
    folder = tmp_path_factory.mktemp("tiny-llava")
    loaded = build_loaded()
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_llava_dir(_saved_llava: Path, tmp_path: Path) -> Path:
    """A folder of its own with the tiny LLaVA and its processor, as `save_pretrained` writes them."""
    return Path(shutil.copytree(_saved_llava, tmp_path / "tiny-llava"))


@pytest.fixture(scope="session")
def saved_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data pack written once: to be read only."""
    return build_pack(tmp_path_factory.mktemp("saved") / "pack")


@pytest.fixture
def pack_dir(tmp_path: Path) -> Path:
    """A data pack of 12 pictures with train.json and test.jsonl."""
    return build_pack(tmp_path / "pack")

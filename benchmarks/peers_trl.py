"""Steps of TRL's SFTTrainer, which makes its batches itself: of random pictures and words of one token each."""

from __future__ import annotations

import random
import tempfile
import time
from argparse import Namespace
from importlib import import_module
from typing import Any

from PIL import Image
from published_shapes import IMAGE_ID
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from training_ladder import Clock
from transformers import CLIPImageProcessor, LlavaConfig, LlavaProcessor, PreTrainedTokenizerFast, TrainerCallback

WORDS = range(10, 900)
BEFORE = 5


def processor_of(config: LlavaConfig) -> LlavaProcessor:
    """Return a processor for LVLMs of this shape, whose tokenizer has the words of `rows_of`."""
    vocabulary = {f"w{number}": number for number in WORDS} | {"<pad>": 0, "<end>": 1, "<image>": IMAGE_ID}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<image>"],
    )
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    pictures = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def rows_of(config: LlavaConfig, count: int, text: int) -> list[dict[str, Any]]:
    """Return samples of one picture and `text` words, the second half of which is the completion."""
    rng, side = random.Random(1), config.vision_config.image_size
    rows = []
    for _ in range(count):
        said = [f"w{rng.choice(WORDS)}" for _ in range(text)]
        asked, answer = said[: text - text // 2], said[text - text // 2 :]
        prompt = [*asked[:BEFORE], "<image>", *asked[BEFORE:]]
        picture = Image.frombytes("RGB", (side, side), rng.randbytes(3 * side * side))
        rows.append({"prompt": " ".join(prompt), "completion": " " + " ".join(answer), "images": [picture]})
    return rows


class StepEnds(TrainerCallback):
    """Marks the ends of a Trainer's steps.

    Attributes:
        clock: waits for the accelerator.
    """

    def __init__(self, device: str) -> None:
        """Start the clock."""
        self.clock = Clock(device, waits=True)

    def on_step_end(self, *given: Any, **named: Any) -> None:
        """Mark one."""
        self.clock.tick()


def trl_steps(
    model: Any, config: LlavaConfig, sizes: tuple[int, int], given: Namespace, device: str, checkpointing: bool
) -> tuple[dict[str, Any], float]:
    """Return steps with TRL's collator, loss and figures, and its defaults where nothing is asked; and their begin."""
    tool, datasets = import_module("trl"), import_module("datasets")
    (size, text), ends = sizes, StepEnds(device)
    rows = rows_of(config, size * (given.warmup + given.steps), text)
    settings = tool.SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=size,
        max_steps=given.warmup + given.steps,
        learning_rate=1e-4,
        max_length=None,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        dataloader_num_workers=0 if given.tiny else 4,
        use_cpu=device == "cpu",
        bf16=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = tool.SFTTrainer(
        model,
        settings,
        train_dataset=datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image())),
        processing_class=processor_of(config),
        callbacks=[ends],
    )
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(size)])
    begin = time.perf_counter()
    trainer.train()
    loss = trainer.state.log_history[-1]["train_loss"]
    steps = [round(spent, 1) for spent in ends.clock.milliseconds()[given.warmup :]]
    tokens = batch["input_ids"].numel()
    return {"steps_ms": steps, "loss": round(loss, 3), "tokens": tokens, "trainable": trainable_of(model)}, begin


def trainable_of(model: Any) -> int:
    """Return how many parameters are open."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

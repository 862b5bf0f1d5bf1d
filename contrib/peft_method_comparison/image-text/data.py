"""Data of the image-text task: questions on pictures with short answers, and plain text that measures forgetting."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, load_dataset

IGNORED = -100
# Sentences that no picture question teaches; their loss before and after training tells what was forgotten.
PLAIN_TEXT = (
    "Water that falls as rain runs down the hills, gathers in streams and rivers, and comes back to the sea.",
    "The train to the coast leaves at seven in the morning, and the last one back departs shortly before midnight.",
    "A triangle whose three sides are of equal length has three equal angles as well.",
    "She put the letter back into its envelope, closed the drawer, and did not speak of it again that winter.",
    "To bake bread you need flour, water, salt and yeast, a warm place, and a good deal of patience.",
    "Most birds of the north fly south before the first snow and return when the days grow long.",
)


def get_train_valid_test_datasets(dataset_id: str, valid_size: int, seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Return training, validation and test rows, each with image, question and answer.

    `dataset_id` is a data set of the hub with the splits train and test, or a folder of pictures that has them.
    Validation rows are taken out of the training split; no picture of theirs stays in it.
    """
    splits = load_dataset(dataset_id)
    train = splits["train"].shuffle(seed=seed)
    pictures = [_fingerprint(row["image"]) for row in train]
    held = set(pictures[:valid_size])
    valid = [index for index, picture in enumerate(pictures) if picture in held][:valid_size]
    rest = [index for index, picture in enumerate(pictures) if picture not in held]
    if not rest or not valid:
        raise ValueError(f"{len(train)} training rows leave none beside {valid_size} for validation: lower valid_size")
    return train.select(rest), train.select(valid), splits["test"]


def conversation(row: dict[str, Any], template: str, answered: bool) -> list[dict[str, Any]]:
    """Return a row as the turns of a chat, with or without its answer."""
    asked = [
        {"type": "image", "image": row["image"].convert("RGB")},
        {"type": "text", "text": template.format(query=row["question"])},
    ]
    turns = [{"role": "user", "content": asked}]
    if answered:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]})
    return turns


def training_batch(processor: Any, rows: list[dict[str, Any]], template: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a training step, in which answers alone have labels."""
    processor.tokenizer.padding_side = "right"
    whole = _encoded(processor, [conversation(row, template, True) for row in rows])
    asked = _encoded(processor, [conversation(row, template, False) for row in rows], prompt=True)
    labels = whole["input_ids"].masked_fill(whole["attention_mask"] == 0, IGNORED)
    for row, length in enumerate(asked["attention_mask"].sum(dim=1).tolist()):
        if not torch.equal(whole["input_ids"][row, :length], asked["input_ids"][row, :length]):
            raise ValueError("the chat template does not begin an answered question as it does an open one")
        labels[row, :length] = IGNORED
    return {**whole, "labels": labels}


def prompt_batch(processor: Any, rows: list[dict[str, Any]], template: str) -> dict[str, torch.Tensor]:
    """Return the tensors that an answer is generated from."""
    processor.tokenizer.padding_side = "left"
    return _encoded(processor, [conversation(row, template, False) for row in rows], prompt=True)


def _encoded(processor: Any, chats: list[list[dict[str, Any]]], prompt: bool = False) -> dict[str, torch.Tensor]:
    return dict(
        processor.apply_chat_template(
            chats,
            add_generation_prompt=prompt,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
    )


def _fingerprint(image: Any) -> int:
    return hash((image.size, image.tobytes()))

#!/usr/bin/env python3
"""Let a model write plain text itself, as a sample of what it can say: for healing, and for ranking layers by text.

    python benchmarks/own_stories.py MODEL OUT --count 4200 --held 200

Asks for stories, explanations, letters and talks about words of the model's tokenizer, drawn at temperature 1 from the
likeliest 95% of tokens. OUT gets `heal_text.json` and `held_out.json` in LLaVA form, without pictures.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from rendered_scenes import words_of

from striate.models.io.load import load_model

REQUESTS = (
    "Write the first paragraphs of a story with the words {} and {}.",
    "Tell a short story in which two people talk about {} and {}.",
    "Write a page of a novel in which {} and {} matter.",
    "Write a dialogue between friends about {} and {}.",
    "Explain to a child what {} has to do with {}.",
    "How is {} used in everyday life, and how {}?",
    "Write a letter that mentions {} and {}.",
    "Give three facts about {} and one about {}.",
)


def prompts(words: list[str], count: int, seed: int) -> list[str]:
    """Return `count` requests about pairs of words, all kinds alike often."""
    chance = random.Random(seed)
    return [REQUESTS[number % len(REQUESTS)].format(*chance.sample(words, 2)) for number in range(count)]


@torch.no_grad()
def answers(model: Any, processor: Any, asked: list[str], new_tokens: int) -> list[str]:
    """Return what the model writes, one text a request."""
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    chats = [[{"role": "user", "content": [{"type": "text", "text": one}]}] for one in asked]
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    draw = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0}
    written = model.generate(**inputs, **draw, max_new_tokens=new_tokens)
    return list(tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=4200)
    parser.add_argument("--held", type=int, default=200, help="of these, for calibration")
    parser.add_argument("--new-tokens", type=int, default=160)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    loaded = load_model(args.model)
    model: Any = loaded.model
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    asked = prompts(words_of(loaded.processor.tokenizer.get_vocab()), args.count, args.seed)
    written = []
    for start in range(0, len(asked), args.batch):
        written += answers(model, loaded.processor, asked[start : start + args.batch], args.new_tokens)
    samples = [
        {"id": f"story-{number}", "conversations": [{"from": "human", "value": one}, {"from": "gpt", "value": text}]}
        for number, (one, text) in enumerate(zip(asked, written, strict=True))
        if text.strip()
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "held_out.json").write_text(json.dumps(samples[: args.held]))
    (args.out / "heal_text.json").write_text(json.dumps(samples[args.held :]))
    print(f"{len(samples)} texts, {args.held} of them held out")


if __name__ == "__main__":
    main()

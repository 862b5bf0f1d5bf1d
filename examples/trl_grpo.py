"""Reward right answers about pictures, in the visual region alone: TRL's GRPOTrainer (arXiv 2402.03300).

python examples/trl_grpo.py MODEL PACK OUT --region uniform:25%

PACK is a folder with test.jsonl as docs/data.md describes it: the answers that it allows are the reward.
"""

import argparse
from difflib import SequenceMatcher
from pathlib import Path

import torch
from datasets import Dataset, Image, List
from trl import GRPOConfig, GRPOTrainer

import striate
from striate.tasks.packs.reader import read_pack

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("pack", type=Path)
parser.add_argument("out")
parser.add_argument("--region", default="uniform:25%")
parser.add_argument("--steps", type=int, default=-1, help="-1: one pass over the questions")
parser.add_argument("--tokens", type=int, default=32, help="the most of one answer")
args = parser.parse_args()


def likeness(completions: list, answers: list, **_: object) -> list[float]:
    """Return how alike each completion is to the nearest of its allowed answers: 1 for the same letters, 0 for none."""
    texts = [turns[0]["content"].strip().lower() for turns in completions]
    return [
        max(SequenceMatcher(None, text, answer.lower()).ratio() for answer in allowed)
        for text, allowed in zip(texts, answers, strict=True)
    ]


def asked(question: str) -> list[dict]:
    """Return a question about one picture as a chat."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


items = [item for item in read_pack(args.pack).items if item.image and item.answers]
rows = [{"prompt": asked(item.question), "images": [str(item.image)], "answers": list(item.answers)} for item in items]
dataset = Dataset.from_list(rows).cast_column("images", List(Image()))
loaded = striate.load_model(args.model)
region = striate.select(loaded.model, args.region)
trainer = GRPOTrainer(
    loaded.model,
    likeness,
    GRPOConfig(
        args.out,
        max_steps=args.steps,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=args.tokens,
        learning_rate=1e-5,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=dataset,
    processing_class=loaded.processor,
    peft_config=striate.lora_config(loaded.model, region, r=64, alpha=128, projector="frozen"),
)
trainer.train()
trainer.save_model(args.out)
print(f"layers {', '.join(map(str, region.layers))} of {region.num_layers} were tuned: {args.out}")

"""Prefer one answer about a picture to another, in the visual region alone: TRL's DPOTrainer (arXiv 2305.18290).

python examples/trl_dpo.py MODEL PAIRS OUT --region uniform:25%

PAIRS is a JSON file, a list of {"image": ..., "question": ..., "chosen": ..., "rejected": ...} with pictures beside it.
The reference model is the same one without its adapter, so that no second copy is in memory.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset, Image, List
from trl import DPOConfig, DPOTrainer

import striate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("pairs", type=Path)
parser.add_argument("out")
parser.add_argument("--region", default="uniform:25%")
parser.add_argument("--steps", type=int, default=-1, help="-1: one pass over the pairs")
args = parser.parse_args()


def said(role: str, text: str) -> list[dict]:
    """Return one turn of a chat."""
    return [{"role": role, "content": [{"type": "text", "text": text}]}]


def row(pair: dict) -> dict:
    """Return a pair as TRL reads it."""
    asked = said("user", pair["question"])
    asked[0]["content"].insert(0, {"type": "image"})
    answers = {name: said("assistant", pair[name]) for name in ("chosen", "rejected")}
    return {"images": [str(args.pairs.parent / pair["image"])], "prompt": asked, **answers}


rows = [row(pair) for pair in json.loads(args.pairs.read_text())]
dataset = Dataset.from_list(rows).cast_column("images", List(Image()))
loaded = striate.load_model(args.model)
region = striate.select(loaded.model, args.region)
trainer = DPOTrainer(
    loaded.model,
    args=DPOConfig(
        args.out,
        max_steps=args.steps,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        learning_rate=5e-6,
        max_length=None,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=dataset,
    processing_class=loaded.processor,
    # The projector stays as it is: what is preferred is said by the language model.
    peft_config=striate.lora_config(loaded.model, region, r=64, alpha=128, projector="frozen"),
)
trainer.train()
trainer.save_model(args.out)
print(f"layers {', '.join(map(str, region.layers))} of {region.num_layers} were tuned: {args.out}")

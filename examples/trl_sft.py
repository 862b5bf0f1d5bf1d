"""Tune the visual region of an LVLM with TRL's SFTTrainer: LoRA in the region's layers, the projector in full.

python examples/trl_sft.py MODEL PACK OUT --region uniform:25%

MODEL is a folder or hub id, PACK a folder with train.json as docs/data.md describes it. OUT becomes an adapter folder,
which `striate merge OUT --out DIR` turns into one checkpoint.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset, Image, List
from trl import SFTConfig, SFTTrainer

import striate
from striate.data.reading import read_samples

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("pack", type=Path)
parser.add_argument("out")
parser.add_argument("--region", default="uniform:25%")
parser.add_argument("--steps", type=int, default=-1, help="-1: one pass over the samples")
args = parser.parse_args()

loaded = striate.load_model(args.model)
region = striate.select(loaded.model, args.region)

# As a prompt and its completion, the loss is taken at the answer alone.
rows = [
    {
        "prompt": sample.prompt().chat(),
        "completion": sample.chat()[-1:],
        "images": [str(path) for path in sample.images],
    }
    for sample in read_samples(args.pack)
    if sample.images
]
dataset = Dataset.from_list(rows).cast_column("images", List(Image()))
trainer = SFTTrainer(
    loaded.model,
    SFTConfig(
        args.out,
        max_steps=args.steps,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        learning_rate=2e-4,
        # Cutting a sample off could cut through its image tokens.
        max_length=None,
        # The reentrant form can lose the gradients of a region above frozen layers.
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=dataset,
    processing_class=loaded.processor,
    peft_config=striate.lora_config(loaded.model, region, r=64, alpha=128),
)
trainer.train()
trainer.save_model(args.out)
print(f"layers {', '.join(map(str, region.layers))} of {region.num_layers} were tuned: {args.out}")

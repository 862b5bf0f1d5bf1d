"""Tune the visual region of an LVLM with Hugging Face's Trainer: the region's own weights, no adapter.

python examples/hf_trainer.py MODEL PACK OUT --region uniform:25%

OUT becomes an ordinary checkpoint with its processor.
"""

import argparse
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

import striate
from striate.data.collate import Collator
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
# All else is frozen now; it raises where nothing would train.
trainable = striate.apply_region(loaded.model, region, method="full")
print(f"{trainable.trainable:,} of {trainable.total:,} parameters train")

trainer = Trainer(
    loaded.model,
    TrainingArguments(
        args.out,
        max_steps=args.steps,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        learning_rate=2e-5,
        # The collator reads samples whole.
        remove_unused_columns=False,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=list(read_samples(args.pack)),
    # Labels at the answers alone; cut off is text, never a picture's tokens.
    data_collator=Collator(loaded.processor, max_length=2048, train=True),
    processing_class=loaded.processor,
)
trainer.train()
trainer.save_model(args.out)
print(f"layers {', '.join(map(str, region.layers))} of {region.num_layers} were tuned: {args.out}")
